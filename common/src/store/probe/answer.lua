#!lua flags=allow-oom
-- probe/answer.lua — answer a question, if it is still the one that is asked.
-- KEYS  1 probe
-- ARGV  1 question  2 session  3 answer JSON  4 s that it is kept
-- Reply {'ok'} | {'late'}
-- Keeps P10: the sample goes with the answer.
local probe = KEYS[1]
local open = redis.call('HMGET', probe, 'id', 'answer', 'version', 'at')
if open[1] ~= ARGV[1] or open[2] then return { 'late' } end
redis.call('DEL', probe)
redis.call('HSET', probe, 'id', ARGV[1], 'version', open[3] or '', 'at', open[4] or '0', 'by', ARGV[2], 'answer', ARGV[3])
redis.call('EXPIRE', probe, ARGV[4])
return { 'ok' }
