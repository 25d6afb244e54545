#!lua flags=allow-oom
-- throttle/keys.lua — give each task of a batch its time to start, by the rate of its key.
-- KEYS  one rate per task, in the order of the tasks; the same key may come again
-- ARGV  1 rate as text  2 ns between two starts  3 burst  4.. deadline of each task, ms since 1970; 0 = none
-- Reply {'paced', ms to wait per task…, now in ms}; 0 = now
-- Keeps the rate of every key as rate.lua keeps that of a queue, and the order of the tasks of a key: each is given a
-- later time than the one before it; one that would come after its deadline takes none, or a key that is behind would
-- never catch up. Bounded by the batch (P10: at most 500 tasks); keys expire.
local text, interval = ARGV[1], tonumber(ARGV[2]) / 1000
local tolerance = tonumber(ARGV[3]) * interval
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local out = { 'paced' }
for i, key in ipairs(KEYS) do
  local tat, of = string.match(redis.call('GET', key) or '', '^(%d+) (.+)$')
  tat = tonumber(tat or now)
  if of ~= text then tat = math.min(tat, now + tolerance) end
  tat = math.max(tat, now) + interval
  local wait = math.ceil(math.max(0, tat - tolerance - now) / 1000)
  local expires = tonumber(ARGV[3 + i])
  if wait > 0 and expires > 0 and now / 1000 + wait >= expires then
    wait = math.max(1, math.ceil(expires - now / 1000))
  else
    local ttl = math.ceil((tat - now) / 1000) + 1000
    redis.call('SET', key, string.format('%.0f %s', math.ceil(tat), text), 'PX', string.format('%.0f', ttl))
  end
  out[i + 1] = string.format('%.0f', wait)
end
out[#out + 1] = string.format('%.0f', math.floor(now / 1000))
return out
