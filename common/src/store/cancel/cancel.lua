-- cancel/cancel.lua — cancel one task: take it out if it is delayed, else mark it, so that nobody starts it.
-- KEYS  1 gate  2 gatestate  3 cancel  4 delayed  5 envelope  6 log  7 the task's result  8 marker of its id
--       9 the stream its id leads to, else the main stream
-- ARGV  1 task  2 'unstarted' or ''  3 the entry its id leads to or ''  4 most marks  5 µs that a mark is kept  6 by  7 why
-- Reply {'removed'|'waiting'|'running'|'marked'|'started'|'settled'|'full'}
-- Keeps P3: `cancels` of the gate state changes in the call that writes the mark, and every claim reads it behind the
-- entries it claimed: whoever claims the task later knows the mark before it decides. P10: marks are bounded.
local gate, state, cancel, delayed, envelope, log, result, marker, stream = unpack(KEYS)
local task, unstarted, entry = ARGV[1], ARGV[2] == 'unstarted', ARGV[3]
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]

local function note(word)
  redis.call('XADD', log, '*', 'kind', 'cancel', 'session', '', 'at', string.format('%.0f', now),
    'text', task .. ': ' .. word, 'by', ARGV[6], 'why', ARGV[7])
  return { word }
end

local packed = redis.call('HGET', envelope, task)
if packed and redis.call('ZSCORE', delayed, task) then
  local fields = unpack_fields(packed)
  if unstarted and (value_of(fields, 'attempt') or value_of(fields, 'deaths')) then return { 'started' } end
  local keep = tonumber(value_of(fields, 'result') or '')
  if keep and keep >= 1 then
    redis.call('SET', result, string.format('{"state":"cancelled","at_ms":%.0f}', now / 1000),
      'PX', string.format('%.0f', math.min(keep, 2592000000)))
  end
  redis.call('ZREM', delayed, task)
  redis.call('HDEL', envelope, task)
  return note('removed')
end

-- Ids of entries as text: a number of Lua holds 53 bits, theirs have 64.
local function later(a, b)
  local function after(x, y) return #x > #y or (#x == #y and x > y) end
  local ams, aseq = string.match(a, '^(%d+)%-(%d+)$')
  local bms, bseq = string.match(b, '^(%d+)%-(%d+)$')
  if ams == bms then return after(aseq, bseq) end
  return after(ams, bms)
end

local function last_delivered()
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local f = {}
    for i = 1, #info, 2 do f[info[i]] = info[i + 1] end
    if f.name == 'workers' then return f['last-delivered-id'] end
  end
  return '0-0'
end

-- Its place, where one look finds it; elsewhere (head, lanes, dead letters) it is marked all the same.
local word, led = 'marked', entry ~= ''
if not led then
  local first = redis.pcall('GET', marker)
  entry = type(first) == 'string' and string.match(first, '^%d+%-%d+$') or ''
end
local found = entry ~= '' and redis.call('XRANGE', stream, entry, entry)[1]
local id = found and value_of(found[2], 'id')
if found and (id == task or (led and not id)) then
  local pending = redis.pcall('XPENDING', stream, 'workers', entry, entry, 1)
  if #pending == 1 then
    if unstarted then return { 'started' } end
    word = 'running'
  elseif later(entry, last_delivered()) then
    word = 'waiting'
  else
    return { 'settled' }
  end
end

local keep = tonumber(ARGV[5])
redis.call('ZREMRANGEBYSCORE', cancel, string.format('%.0f', keep - now), string.format('%.0f', now - keep))
local before = tonumber(redis.call('ZSCORE', cancel, task) or '0')
if before == 0 and redis.call('ZCARD', cancel) >= tonumber(ARGV[4]) then return { 'full' } end
-- Grows, whatever the clock does; and never seems older than the entry, should the clock have been set back.
local at = math.max(now, tonumber(redis.call('HGET', state, 'cancels') or '0') + 1)
local enqueued = found and (tonumber(string.match(entry, '^%d+')) + 1) * 1000 or 0
if enqueued < now + 86400000000 then at = math.max(at, enqueued) end
if not (unstarted and before > 0) then redis.call('ZADD', cancel, string.format('%.0f', unstarted and -at or at), task) end
-- A state without a revision is none, and must not look like one; it begins with a `cancels` of its own.
if redis.call('HEXISTS', state, 'rev') == 1 then redis.call('HSET', state, 'cancels', string.format('%.0f', at)) end
-- A field that comes and goes leaves the gate as it was, and Redis tells every worker to look.
local kind = redis.call('TYPE', gate).ok
if kind == 'hash' or kind == 'none' then
  redis.call('HSET', gate, ':cancel', '1')
  redis.call('HDEL', gate, ':cancel')
end
return note(word)
