#!lua flags=allow-oom
-- limits/set.lua — change fields of a hash that people set (limits, policies), and say so in the queue's log.
-- KEYS  1 hash  2 log
-- ARGV  1 kind of the log entry  2 by  3 why  4.. (field, '=' and the value it must have, '' for any, value or '' to clear it)*
-- Reply {'set'} | {'same'} | {'moved', field}
-- Keeps P9's spirit (one log entry per effective change, and none without); values were validated by the caller.
local hash, log = KEYS[1], KEYS[2]
local before, after = {}, {}
for i = 4, #ARGV, 3 do
  local field, expected, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local was = redis.call('HGET', hash, field) or ''
  if expected ~= '' and expected ~= '=' .. was then return { 'moved', field } end
  if was ~= value then before[field], after[field] = was, value end
end
if not next(after) then return { 'same' } end
-- The log first: a change that cannot be written down is not made.
redis.call('XADD', log, '*', 'kind', ARGV[1], 'by', ARGV[2], 'why', ARGV[3],
  'before', cjson.encode(before), 'after', cjson.encode(after))
for field, value in pairs(after) do
  if value == '' then redis.call('HDEL', hash, field) else redis.call('HSET', hash, field, value) end
end
return { 'set' }
