#!lua flags=allow-oom
-- session/renew.lua — bring back a lease that ran out, if nobody has begun to reap its session.
-- KEYS  1 lease  2 sessions
-- ARGV  1 session  2 lease ms
-- Reply {'alive'} | {'lost'}
-- Keeps P4: `reaping` is irrevocable, so a session is never alive again once its tasks were given away.
local lease, sessions = KEYS[1], KEYS[2]
local session = ARGV[1]
if redis.call('HEXISTS', sessions, session) == 0 or redis.call('HEXISTS', sessions, session .. ':reaping') == 1 then
  return { 'lost' }
end
redis.call('SET', lease, session, 'PX', ARGV[2])
return { 'alive' }
