#!lua flags=allow-oom
-- config/record.lua — begin a revision of a namespace's configuration, or say how it ended.
-- KEYS  1 config
-- ARGV  1 'begun' | 'done' | 'stopped'  2 revision it was judged against; of an end, the one that ends  3 operation id
--       4 most entries  5 most bytes of all entries  6.. field, value, field, value…
-- Reply {'recorded', rev} | {'moved', rev}
-- Keeps P9's spirit (a revision is one entry before the first of its writes; a resend adds none), P10 (count and bytes).
local config, kind = KEYS[1], ARGV[1]
local function fields(entry)
  local out = {}
  for i = 1, #entry[2], 2 do out[entry[2][i]] = entry[2][i + 1] end
  return out
end
local newest = redis.call('XREVRANGE', config, '+', '-', 'COUNT', 1)[1]
local last = newest and fields(newest) or {}
local rev, total = tonumber(last.rev) or 0, tonumber(last.total) or 0
if last.kind == kind and last.op == ARGV[3] then return { 'recorded', rev } end
if kind == 'begun' then
  if rev ~= tonumber(ARGV[2]) then return { 'moved', rev } end
  rev = rev + 1
else
  rev = tonumber(ARGV[2])
end
local t, size = redis.call('TIME'), 200
for i = 6, #ARGV do size = size + #ARGV[i] end
total = total + size
-- An end must not take the number back that another revision has begun meanwhile.
local shown = math.max(rev, tonumber(last.rev) or 0)
redis.call('XADD', config, 'MAXLEN', ARGV[4], '*', 'kind', kind, 'rev', shown, 'of', rev, 'op', ARGV[3],
  'at', string.format('%d%06d', t[1], t[2]), 'total', string.format('%.0f', total), unpack(ARGV, 6))
-- Each entry knows how much was ever written with it: what lies further back than the limit goes.
for _ = 1, tonumber(ARGV[4]) do
  local oldest = redis.call('XRANGE', config, '-', '+', 'COUNT', 1)[1]
  local at = tonumber(fields(oldest).total) or 0
  if total - at <= tonumber(ARGV[5]) then break end
  redis.call('XDEL', config, oldest[1])
end
return { 'recorded', rev }
