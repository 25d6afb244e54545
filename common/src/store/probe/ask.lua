-- probe/ask.lua — ask the workers of a version whether they can read a sample of what waits, from both ends of each place.
-- KEYS  1 gate  2 gatestate  3 probe  4 delayed  5 envelope  6.. streams, the largest last
-- ARGV  1 question  2 version  3 most tasks  4 most bytes  5 s that the question is kept  6 µs that another one is given
--       7.. salts of the streams
-- Reply {'asked', left out, (id, place in KEYS)*} | {'nothing', left out} | {'busy'} another one is open
-- Keeps P10: bounded in tasks and in bytes, sent and looked at. P6: the sample is a copy; nothing is claimed.
local gate, state, probe, delayed, envelope = unpack(KEYS)
local id, version, most, room = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local MAX_LOOKED = 8 * 1024 * 1024
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]

-- Another type is nobody's question.
local kind = redis.call('TYPE', probe).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', probe) end
local open = redis.call('HMGET', probe, 'id', 'at', 'answer')
if open[1] and open[1] ~= id and not open[3] then
  local age = now - (tonumber(open[2] or '') or 0)
  if age >= 0 and age < tonumber(ARGV[6]) then return { 'busy' } end
end

-- Where something waits, and how to read its nth task from one of its ends.
local places = {}
if redis.call('ZCARD', delayed) > 0 then
  local function nth(n, reverse)
    local member = redis.call(reverse and 'ZREVRANGE' or 'ZRANGE', delayed, n, n)[1]
    local packed = member and redis.call('HGET', envelope, member)
    return member, packed and unpack_fields(packed) or {}, member
  end
  places[1] = { 4, nth }
end
for i = 6, #KEYS do
  local stream = KEYS[i]
  local from = redis.call('EXISTS', stream) == 1 and '0-0' or nil
  if from then
    for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
      local f = {}
      for n = 1, #info, 2 do f[info[n]] = info[n + 1] end
      if f.name == 'workers' then from = f['last-delivered-id'] end
    end
  end
  if from and #redis.call('XRANGE', stream, '(' .. from, '+', 'COUNT', 1) > 0 then
    local front, back = '(' .. from, '+'
    local function nth(_, reverse)
      local entry
      if reverse then
        entry = redis.call('XREVRANGE', stream, back, '(' .. from, 'COUNT', 1)[1]
      else
        entry = redis.call('XRANGE', stream, front, '+', 'COUNT', 1)[1]
      end
      if not entry then return nil end
      if reverse then back = '(' .. entry[1] else front = '(' .. entry[1] end
      return entry[1], entry[2], derived_id(entry[1], ARGV[i + 1])
    end
    places[#places + 1] = { i, nth }
  end
end

-- What a small place leaves of its share, the next have.
local picked, looked, left_out = {}, 0, 0
for at, place in ipairs(places) do
  local shares, seen = #places - at + 1, {}
  local tasks, bytes = math.ceil((most - #picked) / shares), math.floor(room / shares)
  for n = 0, tasks - 1 do
    local key, fields, task = place[2](math.floor(n / 2), n % 2 == 1)
    if not key or seen[key] or looked > MAX_LOOKED then break end
    seen[key], looked = true, looked + size(fields)
    local payload = value_of(fields, 'payload') or ''
    if #payload > bytes then
      left_out = left_out + 1
    else
      bytes, room = bytes - #payload, room - #payload
      picked[#picked + 1] = { value_of(fields, 'id') or task, place[1], payload }
    end
  end
end
if #picked == 0 then return { 'nothing', left_out } end

local out = { 'asked', left_out }
redis.call('DEL', probe)
redis.call('HSET', probe, 'id', id, 'version', version, 'at', string.format('%.0f', now), 'n', #picked)
for n, one in ipairs(picked) do
  redis.call('HSET', probe, 'p' .. n, one[3])
  out[#out + 1], out[#out + 2] = one[1], one[2]
end
redis.call('EXPIRE', probe, ARGV[5])
-- A state without a revision is none, and must not look like one.
if redis.call('HEXISTS', state, 'rev') == 1 then
  local last = tonumber(redis.call('HGET', state, 'probe') or '0')
  redis.call('HSET', state, 'probe', string.format('%.0f', math.max(now, last + 1)))
end
-- A field that comes and goes leaves the gate as it was, and Redis tells every worker to look.
local kind = redis.call('TYPE', gate).ok
if kind == 'hash' or kind == 'none' then
  redis.call('HSET', gate, ':probe', '1')
  redis.call('HDEL', gate, ':probe')
end
return out
