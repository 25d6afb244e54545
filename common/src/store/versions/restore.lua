-- versions/restore.lua — bring a retired version back: the same label, for the same build.
-- KEYS  1 gate  2 gatestate  3 history  4 versions  5 log
-- ARGV  1 version  2 by  3 why  4 'dry' or ''
-- Reply {'restored'|'would'|'same'} | {'unknown'}
-- Keeps P9: one note in the history, one entry in the log.
local version, log = ARGV[1], KEYS[5]
local record = record_of(version)
if not record then return { 'unknown' } end
if not is_retired(record) then return { 'same' } end
if ARGV[4] ~= '' then return { 'would' } end
record.retired_us, record.retired_by, record.retired_why = nil, nil, nil
keep_record(version, record)
local by, why = string.sub(ARGV[2], 1, 64), string.sub(ARGV[3], 1, 500)
local said = 'version ' .. version .. ' restored' .. (why ~= '' and ': ' .. why or '')
local cur = seal_pending('redis-cli')
if cur then note('note', cur, { source = 'cli', by = by, why = said }) end
redis.call('XADD', log, '*', 'kind', 'version', 'session', '', 'at', now_us(), 'text', said, 'by', by, 'why', why)
return { 'restored' }
