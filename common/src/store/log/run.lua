#!lua flags=allow-oom
-- log/run.lua — write down when the server is another run than the one that wrote the log so far.
-- KEYS  1 versions  2 log
-- ARGV  1 run id of the server  2 when it began, µs
-- Reply {'same'|'noted'}
-- Keeps P3 countable: times compare only within one run of one server, so whoever counts must know where one ended.
-- `:run` = "<run id> <when it was last seen, µs>"; `:runs` = "<when the one before was last seen>/<when it began>/<when it
-- was first seen> …", µs, oldest first; bounded (P10): of what goes the time remains, as one of which nothing is known.
local MOST = 50
local versions, log = KEYS[1], KEYS[2]
local t = redis.call('TIME')
local at = string.format('%d%06d', t[1], t[2])
local run, last = string.match(redis.call('HGET', versions, ':run') or '', '^(%S+) (%d+)$')
if run ~= ARGV[1] then
  local runs = {}
  for word in string.gmatch(redis.call('HGET', versions, ':runs') or '', '%S+') do runs[#runs + 1] = word end
  runs[#runs + 1] = (last or '0') .. '/' .. ARGV[2] .. '/' .. at
  while #runs > MOST do
    table.remove(runs, 1)
    runs[1] = '0/0/' .. string.match(runs[1], '%d+$')
  end
  redis.call('XADD', log, '*', 'kind', 'server', 'at', at, 'run', ARGV[1], 'before', run or '')
  redis.call('HSET', versions, ':runs', table.concat(runs, ' '))
end
redis.call('HSET', versions, ':run', ARGV[1] .. ' ' .. at)
return { run == ARGV[1] and 'same' or 'noted' }
