-- dead/requeue.lua — put dead letters back into line: as new as they were before their first attempt, or with the
-- attempts given back that they made on one version.
-- KEYS  1 dead  2 log  3 main stream  4 high  5 low  6 cancel
-- ARGV  1 by  2 why  3 operation  4 salt of the dead letters  5 version whose attempts are given back, '' = all of any
--       6.. entries
-- Reply {'requeued', n}; an entry that is not there (any more) is passed over, so a resend changes nothing
-- Keeps P1 (in line before it is taken from the dead letters, error chain and id with it), P5 (the gate comes again).
local dead, log, main, version = KEYS[1], KEYS[2], KEYS[3], ARGV[5]
local priorities = { high = KEYS[4], low = KEYS[5] }
-- A key of a wrong type must fail here, before anything has moved.
redis.call('XLEN', log)
for i = 3, 5 do redis.call('XLEN', KEYS[i]) end

local FRESH = { attempt = 1, snoozes = 1 }
local function reborn(fields)
  local expired, out = value_of(fields, 'dead_reason') == 'expired', {}
  for i = 1, #fields, 2 do
    local name = fields[i]
    -- A deadline that was the reason would only kill it again: whoever requeues it wants it run.
    -- What killed its process keeps its deaths: it runs alone until an attempt ends.
    local gone = (version == '' and FRESH[name]) or string.sub(name, 1, 5) == 'dead_' or (expired and name == 'expires')
    if not gone then out[#out + 1], out[#out + 2] = name, fields[i + 1] end
  end
  return out
end

local n, first, last, tasks, refunds = 0, '', '', {}, {}
for i = 6, #ARGV do
  local entry = redis.call('XRANGE', dead, ARGV[i], ARGV[i])[1]
  if entry then
    local fields = reborn(defaulted(entry, ARGV[4]))
    n, last = n + 1, entry[1]
    if version ~= '' then
      local given, _, changed = give_back(fields, version)
      fields, refunds[n] = with(fields, changed), given
    end
    local place = add(priorities[value_of(fields, 'priority')] or main, fields)
    redis.call('XDEL', dead, entry[1])
    -- A cancellation that came too late for it says nothing about its new life.
    redis.call('ZREM', KEYS[6], value_of(fields, 'id'))
    if first == '' then first = last end
    tasks[n] = string.sub(value_of(fields, 'id'), 1, 64) .. '=' .. place
  end
end
if n > 0 then
  local row = { 'kind', 'requeued', 'by', ARGV[1], 'why', ARGV[2], 'op', ARGV[3], 'count', n, 'first', first, 'last', last,
    'tasks', table.concat(tasks, ' ') }
  if version ~= '' then
    for _, text in ipairs({ 'version', version, 'refunds', table.concat(refunds, ' ') }) do row[#row + 1] = text end
  end
  redis.call('XADD', log, '*', unpack(row))
end
return { 'requeued', n }
