-- session/reap.lua — move what a lost session held back into line, a bounded step at a time: to the head stream, or to
-- the suspects what may have killed its process. What killed a process in which it ran alone is a dead letter.
-- KEYS  1 sessions  2 lease  3 log  4 head  5 suspects  6 dead  7 source stream
-- ARGV  1 session  2 reaper's session  3 salt of the source stream  4 most entries  5 most bytes
-- Reply {'alive'} | {'moved', n, of them dead letters, more (1|0)}; n = 0 for a stream that is not there or has no group
-- Keeps P1 (entries move, never vanish), P4 (marked before anything moves), P7 (only a death alone makes a dead letter),
-- P10 (bounded in count and bytes).
local sessions, lease, log, head, suspects, dead, source = unpack(KEYS)
local session, most, most_bytes = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5])
if redis.call('EXISTS', lease) == 1 then return { 'alive' } end
local t = redis.call('TIME')
local at = string.format('%d%06d', t[1], t[2])
local on_record = redis.call('HEXISTS', sessions, session) == 1
-- A consumer without a record never joined, so it has nothing to come back to: the mark would only stay behind.
if on_record and redis.call('HSETNX', sessions, session .. ':reaping', at) == 1 then
  redis.call('XADD', log, '*', 'kind', 'reaping', 'session', session, 'by', ARGV[2], 'at', at,
    'record', redis.call('HGET', sessions, session) or '')
end
-- Whom to blame: the suspects it had named. If it had named none, everything that it may have started; suspects are
-- named before they start, and without a record nothing starts. Beside one that runs alone nothing runs.
local named, anybody, alone = {}, on_record, nil
for stream, id, how, version in
  string.gmatch(redis.call('HGET', sessions, session .. ':suspects') or '', '([^= ]*)=([^= ]*)=([^= ]*)=([^= ]*)') do
  anybody, alone = false, alone or how == 'alone' and stream .. '=' .. id
  if stream == source then named[id] = { how = how, version = version } end
end
local function number(fields, name) return tonumber(value_of(fields, name) or '') or 0 end

-- One stream without a group (a lane deleted by hand) must not keep the others from being recovered.
local ok, pending = pcall(redis.call, 'XPENDING', source, 'workers', '-', '+', most, session)
if not ok then return { 'moved', 0, 0, 0 } end
-- Where a lost attempt ran is computed again, from the gate's history: since when the session held it, and its key.
local bytes, recovered, poison = 0, { tasks = {}, held = {}, keys = {} }, { tasks = {}, held = {}, keys = {} }
for _, p in ipairs(pending) do
  local id = p[1]
  local entry = redis.call('XRANGE', source, id, id)[1]
  local list, evidence = recovered, '?=' .. id
  if entry then
    local fields = defaulted(entry, ARGV[3])
    local deaths, name = number(fields, 'deaths'), named[id]
    if alone and alone ~= source .. '=' .. id then name = nil end
    local overrides = { recovered = tostring(number(fields, 'recovered') + 1) }
    if name or (anybody and deaths == 0) then
      -- Beside others a suspect dies its second death at most, however often: then it has to run alone.
      deaths = name and (name.how == 'alone' and deaths + 1 or 2) or 1
      overrides.deaths = tostring(deaths)
    end
    local target = deaths > 0 and suspects or head
    if name and name.how == 'alone' and deaths >= 3 then
      target, list = dead, poison
      overrides.dead_reason, overrides.dead_session, overrides.dead_version = 'poison', session, name.version
      overrides.dead_error = 'the process died ' .. deaths .. ' times while it ran, the last time with nothing else running'
      overrides.dead_at = string.sub(at, 1, -4)
    end
    fields = with(fields, overrides)
    add(target, fields) -- before the acknowledgement: a write that fails leaves the entry pending
    bytes = bytes + size(fields)
    evidence = value_of(fields, 'id') .. '=' .. id
    local key = value_of(fields, 'key')
    if key and #key <= 256 then list.keys[id] = key end
  end
  list.tasks[#list.tasks + 1], list.held[#list.held + 1] = evidence, string.format('%.0f', p[3])
  redis.call('XACK', source, 'workers', id)
  if entry then redis.call('XDEL', source, id) end
  if bytes > most_bytes then break end
end
for _, written in ipairs({ { 'recovered', recovered }, { 'poison', poison } }) do
  local list = written[2]
  if #list.tasks > 0 then
    redis.call('XADD', log, '*', 'kind', written[1], 'session', session, 'by', ARGV[2], 'at', at, 'stream', source,
      'tasks', table.concat(list.tasks, ' '), 'held', table.concat(list.held, ' '), 'keys', cjson.encode(list.keys))
  end
end
local more = #redis.call('XPENDING', source, 'workers', '-', '+', 1, session)
if more == 0 then redis.call('XGROUP', 'DELCONSUMER', source, 'workers', session) end
return { 'moved', #recovered.tasks + #poison.tasks, #poison.tasks, more }
