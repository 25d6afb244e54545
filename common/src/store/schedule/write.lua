#!lua flags=allow-oom
-- schedule/write.lua — write or remove one definition, if it is still the one that was judged.
-- KEYS  1 schedules  2 log
-- ARGV  1 schedule  2 digest of the definition it replaces, '' for none  3 new definition, '' to remove it
--       4 '1' to count ticks from now on, '' to go on where it was  5 most fields  6 session or ''  7 text for the log
-- Reply {'written'} | {'moved'} | {'full'}
-- Keeps P10 (bounded in number; at maxmemory a schedule can still be paused and removed).
local schedules, log = KEYS[1], KEYS[2]
local name, memory = ARGV[1], ARGV[1] .. ':last'
local before = redis.call('HGET', schedules, name)
if (before and redis.sha1hex(before) or '') ~= ARGV[2] then return { 'moved' } end
-- Whatever was wrong with it before, it is said anew of what is there now.
redis.call('HDEL', schedules, name .. ':alerted')
if ARGV[3] == '' then
  redis.call('HDEL', schedules, name, memory)
else
  if not before and redis.call('HLEN', schedules) >= tonumber(ARGV[5]) then return { 'full' } end
  redis.call('HSET', schedules, name, ARGV[3])
  if ARGV[4] == '1' or redis.call('HEXISTS', schedules, memory) == 0 then
    local t = redis.call('TIME')
    redis.call('HSET', schedules, memory, string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000)))
  end
end
redis.call('XADD', log, '*', 'kind', 'schedule_changed', 'session', ARGV[6], 'text', ARGV[7])
return { 'written' }
