#!lua flags=allow-oom
-- session/suspects.lua — name the suspects that a session is about to run, before it runs them.
-- KEYS  1 sessions
-- ARGV  1 session  2 number of this list; grows  3 `<stream>=<entry>=<beside|alone>=<version>` each, parted by spaces
-- Reply {'ok'} | {'lost'}
-- Keeps P4 (a session that is being reaped starts no suspect), P2 (a list sent again, or overtaken, changes nothing).
local sessions, session = KEYS[1], ARGV[1]
if redis.call('HEXISTS', sessions, session) == 0 or redis.call('HEXISTS', sessions, session .. ':reaping') == 1 then
  return { 'lost' }
end
local known = redis.call('HGET', sessions, session .. ':suspects')
local number = known and tonumber(string.match(known, '^%d+')) or 0
if tonumber(ARGV[2]) > number then
  redis.call('HSET', sessions, session .. ':suspects', ARGV[2] .. ' ' .. ARGV[3])
end
return { 'ok' }
