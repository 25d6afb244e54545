#!lua flags=allow-oom
-- log/run.lua — write down when the server is another run than the one that wrote the log so far.
-- KEYS  1 versions  2 log
-- ARGV  1 run id of the server  2 seconds since it began
-- Reply {'same'|'noted'}
-- Keeps P3 countable: times compare only within one run of one server, so whoever counts must know where one ended.
-- `:run` = "<run id> <when it was last seen, µs>". Bounded: one entry per run (P10).
local versions, log = KEYS[1], KEYS[2]
local t = redis.call('TIME')
local at = string.format('%d%06d', t[1], t[2])
local known = redis.call('HGET', versions, ':run') or ''
local run, last = string.match(known, '^(%S+) (%d+)$')
if run ~= ARGV[1] then
  redis.call('XADD', log, '*', 'kind', 'server', 'at', at, 'run', ARGV[1], 'before', run or '', 'last', last or '0',
    'since', string.format('%.0f', (t[1] - tonumber(ARGV[2])) * 1000000))
end
redis.call('HSET', versions, ':run', ARGV[1] .. ' ' .. at)
return { run == ARGV[1] and 'same' or 'noted' }
