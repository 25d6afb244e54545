#!lua flags=allow-oom
-- session/open.lua — say for which versions a session starts nothing because they fail.
-- KEYS  1 sessions
-- ARGV  1 session  2 versions, space-separated; empty = none
-- Reply {'ok'} | {'lost'}
-- Keeps P10: a session that is over leaves nothing behind.
local sessions, session = KEYS[1], ARGV[1]
if redis.call('HEXISTS', sessions, session) == 0 then return { 'lost' } end
if ARGV[2] == '' then
  redis.call('HDEL', sessions, session .. ':open')
else
  redis.call('HSET', sessions, session .. ':open', ARGV[2])
end
return { 'ok' }
