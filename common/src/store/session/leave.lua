#!lua flags=allow-oom
-- session/leave.lua — end a session that has given everything back.
-- KEYS  1 sessions  2 lease  3 log  4.. streams it read
-- ARGV  1 session  2 why
-- Reply {'left'} | {'holding', n}
-- Keeps P1: a consumer with pending entries is never deleted (its entries would be orphaned); reaping takes them.
local sessions, lease, log = KEYS[1], KEYS[2], KEYS[3]
local session, holding = ARGV[1], 0
for i = 4, #KEYS do
  local ok, pending = pcall(redis.call, 'XPENDING', KEYS[i], 'workers', '-', '+', 1, session)
  if ok and #pending == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[i], 'workers', session)
  elseif ok then
    holding = holding + 1
  end
end
redis.call('DEL', lease)
if holding > 0 then
  -- Its process has not died: nobody is to blame (see reap.lua).
  redis.call('HSET', sessions, session .. ':suspects', '0 nobody===')
  return { 'holding', holding }
end
redis.call('HDEL', sessions, session, session .. ':rev', session .. ':running', session .. ':open', session .. ':grant',
  session .. ':reaping', session .. ':suspects')
redis.call('XADD', log, '*', 'kind', 'left', 'session', session, 'why', ARGV[2])
return { 'left' }
