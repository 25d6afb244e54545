#!lua flags=allow-oom
-- session/publish.lua — say which gate revision a session obeys, and what it runs.
-- KEYS  1 sessions
-- ARGV  1 session  2 revision  3 running, JSON of version -> count
-- Reply {'ok'} | {'lost'}
-- Keeps P10: allowed at maxmemory, so that a flip can be confirmed there.
local sessions, session = KEYS[1], ARGV[1]
if redis.call('HEXISTS', sessions, session) == 0 then return { 'lost' } end
redis.call('HSET', sessions, session .. ':rev', ARGV[2], session .. ':running', ARGV[3])
return { 'ok' }
