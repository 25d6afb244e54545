#!lua flags=allow-oom
-- rollout/drive.lua — take, or keep, the lease of whoever drives a queue's rollout.
-- KEYS  1 driver  2 lease of the session
-- ARGV  1 session  2 ms; 0: give it up
-- Reply {'mine'} | {'other', session}
-- Keeps P4: a session whose own lease is gone drives nothing. P8: what is no lease, for it never runs out or is no text, was
-- put there by hand, and keeps nobody from driving.
local holder = redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('GET', KEYS[1])
local ms = redis.call('PTTL', KEYS[1])
if holder and holder ~= ARGV[1] and ms >= 0 and ms <= 60000 then return { 'other', holder } end
if ARGV[2] == '0' then
  if holder == ARGV[1] then redis.call('DEL', KEYS[1]) end
  return { 'other', '' }
end
if redis.call('EXISTS', KEYS[2]) == 0 then return { 'other', '' } end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return { 'mine' }
