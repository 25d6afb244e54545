#!lua flags=allow-oom
-- rollout/lost.lua — count an attempt that vanished with its process, once.
-- KEYS  1 block  2 names of those that were counted
-- ARGV  1 version  2 task and how often it was recovered  3 TTL of the block s  4 '1' if a pin or a target sent it there, else ''
--       5 TTL of the names s
-- Reply {'counted'} | {'known'}
-- Keeps P10: the names are bounded. Forgotten all at once: a task counts twice then, and the others go on to count.
local block, names = KEYS[1], KEYS[2]
if redis.call('HLEN', names) >= 5000 then redis.call('DEL', names) end
local new = redis.call('HSETNX', names, ARGV[2], ARGV[1])
redis.call('EXPIRE', names, ARGV[5])
-- In whatever block: a suspect that is given back, or waits in a lane, comes again much later, and was lost once.
if new == 0 then return { 'known' } end
for _, what in ipairs({ 'n', 'lost' }) do redis.call('HINCRBY', block, ARGV[1] .. ':' .. what, 1) end
if ARGV[4] == '1' then redis.call('HINCRBY', block, ARGV[1] .. ':placed', 1) end
redis.call('EXPIRE', block, ARGV[3])
return { 'counted' }
