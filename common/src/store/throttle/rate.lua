#!lua flags=allow-oom
-- throttle/rate.lua — take starts from the rate of a queue (GCRA: one number says when the bucket is full again).
-- KEYS  1 rate
-- ARGV  1 rate as text  2 ns between two starts  3 burst  4 starts to take: those that cannot begin now have their times in
--       the future; 0 = only look
-- Reply {'paced', starts that may begin now: of those taken, or of all, µs until the next one}
-- Keeps the rate: on Redis's clock, in any window, what begins is at most rate × window + burst. Nothing is ever given
-- back: what was out while the bucket filled would be there twice. P10: the key expires.
local text, interval, burst, want = ARGV[1], tonumber(ARGV[2]) / 1000, tonumber(ARGV[3]), tonumber(ARGV[4])
local tolerance = burst * interval
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local tat, of = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (.+)$')
tat = tonumber(tat or now)
-- Another rate than the one it was filled under: at worst the bucket is empty. It fills from now on, also if this only
-- looks, or whoever looks before he takes would find it empty until the old rate's time has come.
local emptied = of ~= text and tat > now + tolerance
if emptied then tat = now + tolerance end
tat = math.max(tat, now)
local free = math.max(0, math.floor((now + tolerance - tat) / interval + 1e-6))
local begin = want > 0 and math.min(want, free) or free
local wait = tat + (begin + 1) * interval - tolerance - now
if want > 0 or emptied then
  tat = tat + want * interval
  local ttl = math.ceil((tat - now) / 1000) + 1000
  redis.call('SET', KEYS[1], string.format('%.0f %s', math.ceil(tat), text), 'PX', string.format('%.0f', ttl))
end
return { 'paced', begin, string.format('%.0f', math.max(0, math.ceil(wait))) }
