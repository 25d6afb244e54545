-- queue/enqueue.lua — enqueue tasks that are more than a plain entry: under an id, alone under a key, for later.
-- KEYS  1 main stream  2 high  3 low  4 delayed  5 envelope  6 wake  7.. markers
-- ARGV  per task: id, stream (1 to 3), id marker (its place among KEYS, or 0), how long it is kept (ms),
--       unique marker (place or 0), how long (ms), id of the task it is taken from or '', 'now' | 'in' | 'at', ms, n,
--       (field, value)*
-- Reply {'enqueued', (word, text) per task}: 'new', entry id or 'delayed' | 'repeated', the same of the first try |
--       'taken', id of the task that has the unique key
-- Keeps P2: marker and task are written together or not at all, so trying again is safe.
local at = 0
local function take()
  at = at + 1
  return ARGV[at]
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local delayed, envelope, wake = KEYS[4], KEYS[5], KEYS[6]

local function enqueue(id, stream, base, ms, from, n)
  local due = (base == 'in' and now or 0) + ms
  if base == 'now' or due <= now then return redis.call('XADD', stream, '*', unpack(ARGV, from, from + 2 * n - 1)) end
  local fields = { unpack(ARGV, from, from + 2 * n - 1) }
  fields[#fields + 1], fields[#fields + 2] = 'enqueued_at', string.format('%d', now)
  redis.call('ZADD', delayed, due, id)
  redis.call('HSET', envelope, id, pack(fields))
  -- Workers look every half second; what is due before their next look, and before all they know of, is announced.
  if due - now < 1000 and redis.call('ZRANGE', delayed, 0, 0)[1] == id then
    redis.call('SET', wake, '')
    redis.call('DEL', wake)
  end
  return 'delayed'
end

local out = { 'enqueued' }
while at < #ARGV do
  local id, stream = take(), KEYS[tonumber(take())]
  local marker, keep = KEYS[tonumber(take())], take()
  local unique, hold, replaced = KEYS[tonumber(take())], take(), take()
  local base, ms, n = take(), tonumber(take()), tonumber(take())
  local first = marker and redis.call('GET', marker)
  local holder = unique and redis.call('GET', unique)
  if holder == replaced then holder = nil end
  local word, text
  if first then
    word, text = 'repeated', first
  elseif holder and holder ~= id then
    word, text = 'taken', holder
  elseif holder or (base ~= 'now' and redis.call('HEXISTS', envelope, id) == 1) then
    word, text = 'repeated', ''
  else
    word, text = 'new', enqueue(id, stream, base, ms, at + 1, n)
    if marker then redis.call('SET', marker, text, 'PX', keep) end
    if unique then redis.call('SET', unique, id, 'PX', hold) end
  end
  at = at + 2 * n
  out[#out + 1], out[#out + 2] = word, text
end
return out
