-- dead/refund.lua — look at tasks that wait for a retry, or give back the attempts they made on one version and have
-- those that wait because of it retried at once.
-- KEYS  1 delayed  2 envelope  3 log
-- ARGV  1 by  2 why  3 operation  4 version  5 'look' | 'do'  6 most bytes looked at  7.. tasks
-- Reply {'refunded', tasks dealt with, (task, attempts given back, untold, attempts made, 1 if it is due at once, ms of
--       the latest error on the version, that error, bytes)*}; a task that does not wait (any more), or made no attempt on
--       the version that counts, is passed over, so a resend changes nothing
-- Keeps P1 (in the delayed set all the time), P6, P10 (bounded in count and bytes).
local delayed, envelope, log, version = KEYS[1], KEYS[2], KEYS[3], ARGV[4]
redis.call('XLEN', log) -- a key of a wrong type must fail here
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local out, bytes, dealt, tasks, refunds = { 'refunded', 0 }, 0, 0, {}, {}
for i = 7, #ARGV do
  local task = ARGV[i]
  local due, packed = tonumber(redis.call('ZSCORE', delayed, task) or ''), redis.call('HGET', envelope, task)
  if due and packed then
    local fields = unpack_fields(packed)
    local given, untold, changed, latest, was_last = give_back(fields, version)
    if given > 0 then
      -- What waits for the rate of its key, or was ever put off by its handler, may wait for that: it keeps its time.
      local waits = (value_of(fields, 'slot') or '') ~= '' or value_of(fields, 'snoozes')
      local at_once = was_last and not waits and due > now
      if ARGV[5] == 'do' then
        redis.call('HSET', envelope, task, pack(with(fields, changed)))
        if at_once then redis.call('ZADD', delayed, 'XX', now, task) end
        tasks[#tasks + 1], refunds[#refunds + 1] = task .. '=delayed', given
      end
      local made = tonumber(value_of(fields, 'attempt') or '') or 0
      local text = type(latest.error) == 'string' and latest.error or ''
      out[#out + 1] = { task, given, untold, made, at_once and 1 or 0, tonumber(latest.at_ms) or 0, string.sub(text, 1, 1000),
        #packed }
    end
    bytes = bytes + #packed
  end
  dealt = dealt + 1
  if bytes > tonumber(ARGV[6]) then break end
end
if #tasks > 0 then
  redis.call('XADD', log, '*', 'kind', 'refunded', 'by', ARGV[1], 'why', ARGV[2], 'op', ARGV[3], 'count', #tasks,
    'version', version, 'refunds', table.concat(refunds, ' '), 'tasks', table.concat(tasks, ' '))
end
out[2] = dealt
return out
