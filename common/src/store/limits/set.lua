#!lua flags=allow-oom
-- limits/set.lua — change limits of a queue, and say so in its log.
-- KEYS  1 limits  2 log
-- ARGV  1 by  2 why  3.. (field, value or '' to clear it)*
-- Reply {'set'} | {'same'}
-- Keeps P9's spirit (one log entry per effective change, and none without); values were validated by the caller.
local limits, log = KEYS[1], KEYS[2]
local before, after = {}, {}
for i = 3, #ARGV, 2 do
  local was = redis.call('HGET', limits, ARGV[i]) or ''
  if was ~= ARGV[i + 1] then before[ARGV[i]], after[ARGV[i]] = was, ARGV[i + 1] end
end
if not next(after) then return { 'same' } end
-- The log first: a change that cannot be written down is not made.
redis.call('XADD', log, '*', 'kind', 'limits', 'by', ARGV[1], 'why', ARGV[2],
  'before', cjson.encode(before), 'after', cjson.encode(after))
for field, value in pairs(after) do
  if value == '' then redis.call('HDEL', limits, field) else redis.call('HSET', limits, field, value) end
end
return { 'set' }
