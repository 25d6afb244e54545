-- versions/retire.lua — take a version out of use for good: nothing is routed to it any more, and its label is kept.
-- KEYS  1 gate  2 gatestate  3 history  4 versions  5 log  6 lane of the version  7 rollout
-- ARGV  1 version  2 by  3 why  4 'force' or ''  5 if_rev or ''  6 'dry' or ''
-- Reply {'retired'|'would', at µs} | {'already', at µs} | {'unknown'} | {'routed', where} | {'rollout', status} | {'waiting'} | {'moved', rev} | {'unsealed'}
-- Keeps P1 and P5: only what the gate does not name, judged in the call that writes it; seals what is pending first, so a
-- person's edit counts. P9: one note in the history, one entry in the log.
local version, log, lane, rollout = ARGV[1], KEYS[5], KEYS[6], KEYS[7]
local cur = seal_pending('redis-cli')
if not cur then return { 'unsealed' } end
if ARGV[5] ~= '' and tonumber(ARGV[5]) ~= cur.rev then return { 'moved', cur.rev } end
local record = record_of(version)
if not record then return { 'unknown' } end
if is_retired(record) then return { 'already', tostring(record.retired_us) } end

-- Also where nothing goes there for now: a candidate at 0 % is one HSET away from its share.
if version == cur.active then return { 'routed', 'active' } end
if version == cur.candidate then return { 'routed', 'candidate' } end
for _, name in ipairs({ 'pins', 'targets' }) do
  if pairs_to(cur[name], version) ~= '' then return { 'routed', name } end
end
-- P3: also where the gate does not say so a rollout may go back to it, as while it watches on after 100 %.
-- A key of a wrong type is no rollout.
local LIVE = { running = 1, paused = 1, held = 1, watching = 1 }
local run = redis.pcall('HMGET', rollout, 'status', 'from', 'to')
if not run.err and LIVE[run[1] or ''] and (run[2] == version or run[3] == version) then return { 'rollout', run[1] } end

-- Retained tasks, which are done, stay in the lane; only what was not delivered or not settled counts.
local function lane_holds()
  if redis.call('EXISTS', lane) == 0 then return false end
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', lane)) do
    local f = {}
    for i = 1, #info, 2 do f[info[i]] = info[i + 1] end
    if f.name == 'workers' then
      return f.pending > 0 or #redis.call('XRANGE', lane, '(' .. f['last-delivered-id'], '+', 'COUNT', 1) > 0
    end
  end
  return redis.call('XLEN', lane) > 0
end
if ARGV[4] == '' and lane_holds() then return { 'waiting' } end

local at = now_us()
if ARGV[6] ~= '' then return { 'would', at } end
local by, why = string.sub(ARGV[2], 1, 64), string.sub(ARGV[3], 1, 500)
local said = 'version ' .. version .. ' retired' .. (why ~= '' and ': ' .. why or '')
note('note', cur, { source = 'cli', by = by, why = said })
redis.call('XADD', log, '*', 'kind', 'version', 'session', '', 'at', at, 'text', said, 'by', by, 'why', why)
record.retired_us, record.retired_by, record.retired_why = at, by, why
keep_record(version, record)
return { 'retired', at }
