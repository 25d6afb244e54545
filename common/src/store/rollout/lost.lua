#!lua flags=allow-oom
-- rollout/lost.lua — count an attempt that vanished with its process, once.
-- KEYS  1 block
-- ARGV  1 version  2 task and how often it was recovered  3 TTL s  4 '1' if a pin or a target sent it there, else ''
-- Reply {'counted'} | {'known'} | {'full'}
-- Keeps P10: the names of counted tasks are bounded.
if redis.call('HLEN', KEYS[1]) > 5000 then return { 'full' } end
if redis.call('HSETNX', KEYS[1], '?' .. ARGV[2], ARGV[1]) == 0 then return { 'known' } end
for _, what in ipairs({ 'n', 'lost' }) do redis.call('HINCRBY', KEYS[1], ARGV[1] .. ':' .. what, 1) end
if ARGV[4] == '1' then redis.call('HINCRBY', KEYS[1], ARGV[1] .. ':placed', 1) end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return { 'counted' }
