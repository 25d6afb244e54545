-- session/reap.lua — move what a lost session held to the head stream, a bounded step at a time.
-- KEYS  1 sessions  2 lease  3 log  4 head  5 source stream
-- ARGV  1 session  2 reaper's session  3 salt of the source stream  4 most entries  5 most bytes
-- Reply {'alive'} | {'moved', n, more (1|0)}; n = 0 for a stream that is not there or has no group
-- Keeps P1 (entries move, never vanish), P4 (marked before anything moves), P10 (bounded in count and bytes).
local sessions, lease, log, head, source = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session, most, most_bytes = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5])
if redis.call('EXISTS', lease) == 1 then return { 'alive' } end
local t = redis.call('TIME')
local at = string.format('%d%06d', t[1], t[2])
-- A consumer without a record never joined, so it has nothing to come back to: the mark would only stay behind.
if redis.call('HEXISTS', sessions, session) == 1 and redis.call('HSETNX', sessions, session .. ':reaping', at) == 1 then
  redis.call('XADD', log, '*', 'kind', 'reaping', 'session', session, 'by', ARGV[2], 'at', at,
    'record', redis.call('HGET', sessions, session) or '')
end
-- One stream without a group (a lane deleted by hand) must not keep the others from being recovered.
local ok, pending = pcall(redis.call, 'XPENDING', source, 'workers', '-', '+', most, session)
if not ok then return { 'moved', 0, 0 } end
local moved, bytes, ids = 0, 0, {}
for _, p in ipairs(pending) do
  local id = p[1]
  local entry = redis.call('XRANGE', source, id, id)[1]
  if entry then
    local fields = defaulted(entry, ARGV[3])
    fields = with(fields, { deaths = tostring((tonumber(value_of(fields, 'deaths') or '') or 0) + 1) })
    add(head, fields) -- before the acknowledgement: a write that fails leaves the entry pending
    bytes = bytes + size(fields)
    ids[#ids + 1] = value_of(fields, 'id') .. '=' .. id
  else
    ids[#ids + 1] = '?=' .. id
  end
  redis.call('XACK', source, 'workers', id)
  if entry then redis.call('XDEL', source, id) end
  moved = moved + 1
  if bytes > most_bytes then break end
end
if moved > 0 then
  redis.call('XADD', log, '*', 'kind', 'recovered', 'session', session, 'by', ARGV[2], 'at', at, 'stream', source,
    'tasks', table.concat(ids, ' '))
end
local more = #redis.call('XPENDING', source, 'workers', '-', '+', 1, session)
if more == 0 then redis.call('XGROUP', 'DELCONSUMER', source, 'workers', session) end
return { 'moved', moved, more }
