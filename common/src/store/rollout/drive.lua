#!lua flags=allow-oom
-- rollout/drive.lua — take, or keep, the lease of whoever drives a queue's rollout.
-- KEYS  1 driver  2 lease of the session
-- ARGV  1 session  2 ms; 0: give it up
-- Reply {'mine'} | {'other', session}
-- Keeps P4: a session whose own lease is gone drives nothing.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return { 'other', holder } end
if ARGV[2] == '0' then
  if holder then redis.call('DEL', KEYS[1]) end
  return { 'other', '' }
end
if redis.call('EXISTS', KEYS[2]) == 0 then return { 'other', '' } end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return { 'mine' }
