#!lua flags=allow-oom
-- results/progress.lua — write down how far running tasks are, if their session still lives.
-- KEYS  1 lease  2.. results
-- ARGV  per result: ms to keep it, JSON without its opening `{"state":…,"at_ms":…,`
-- Reply {'written', n} | {'no_lease'}
-- Keeps P4 (a lost session writes nothing), P2 (what has ended stays as it ended, however late this comes).
if redis.call('EXISTS', KEYS[1]) == 0 then return { 'no_lease' } end
local RUNNING = '{"state":"running",'
local t = redis.call('TIME')
local head = RUNNING .. string.format('"at_ms":%.0f,', t[1] * 1000 + math.floor(t[2] / 1000))
local n = 0
for i = 2, #KEYS do
  local before = redis.call('GET', KEYS[i])
  if not before or string.sub(before, 1, #RUNNING) == RUNNING then
    redis.call('SET', KEYS[i], head .. ARGV[2 * i - 2], 'PX', ARGV[2 * i - 3])
    n = n + 1
  end
end
return { 'written', n }
