#!lua flags=allow-oom
-- throttle/grant.lua — how many tasks a session may run at once, so that the fleet keeps to its limit.
-- KEYS  1 sessions  2.. streams the session reads now
-- ARGV  1 session  2 number of the call  3 limit of the fleet  4 held: the most it may run now  5 of these, running
--       6 ceiling: the most it would run; 0 = it wants none
-- Reply {'granted', cap} | {'late'} for a call that an answered one has overtaken | {'lost'}
-- Keeps the limit: what is booked for a session is never below what it holds, and new grants come from what nobody has
-- booked. A session counts until it is marked `reaping` (irrevocable, P4) or its record is gone. Keeps P6: a session that
-- has too much is told a lower cap and reports less as its tasks end. Bounded by the fleet's size (P10).
-- Booked is `<session>:grant` = "booked, wanted, since ms, last call ms, number of the call, hungry".
local TURN = 2000 -- ms that a session keeps what it has, and that another waits, when there are more sessions than grants
local SILENT = 3000 -- ms after which a session without a grant that has stopped asking is not waited for
local sessions, session = KEYS[1], ARGV[1]
local call, limit, held = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local running, ceiling = tonumber(ARGV[5]), tonumber(ARGV[6])
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)

-- Whether there is something in a stream that nobody was given.
local function undelivered(stream)
  local ok, groups = pcall(redis.call, 'XINFO', 'GROUPS', stream)
  for _, group in ipairs(ok and groups or {}) do
    local info = {}
    for i = 1, #group, 2 do info[group[i]] = group[i + 1] end
    if info.name == 'workers' then
      return #redis.call('XRANGE', stream, '(' .. info['last-delivered-id'], '+', 'COUNT', 1) > 0
    end
  end
  return false
end

local fields, all = {}, redis.call('HGETALL', sessions)
for i = 1, #all, 2 do fields[all[i]] = all[i + 1] end
if not fields[session] or fields[session .. ':reaping'] then return { 'lost' } end

local list, mine, others = {}, { id = session, booked = 0, since = now, call = 0, hungry = false }, 0
for name, text in pairs(fields) do
  local id = string.match(name, '^(.*):grant$')
  local b, w, s, at, c, h = string.match(text, '^(%d+) (%d+) (%d+) (%d+) (%d+) ([01])$')
  if id == session and b then
    mine = { id = id, booked = tonumber(b), since = tonumber(s), call = tonumber(c), hungry = h == '1' }
  elseif id and not fields[id] then
    redis.call('HDEL', sessions, name)
  elseif id and b and not fields[id .. ':reaping'] then
    local other = { id = id, booked = tonumber(b), wants = tonumber(w), since = tonumber(s), hungry = h == '1' }
    if other.booked == 0 and tonumber(at) < now - SILENT then other.wants = 0 end
    others = others + other.booked
    list[#list + 1] = other
  end
end
if call <= mine.call then return { 'late' } end

local hungry = false
if ceiling > 0 then
  for i = 2, #KEYS do hungry = hungry or undelivered(KEYS[i]) end
end
local since = mine.since
if (mine.booked > 0) ~= (held > 0) or (held == 0 and hungry and not mine.hungry) then since = now end
local wants = ceiling
if ceiling > 0 and not hungry then wants = math.min(ceiling, math.max(1, running)) end
mine = { id = session, booked = held, wants = wants, since = since, hungry = hungry }
list[#list + 1] = mine

-- Everybody has the same, as far as he wants it; what does not divide goes by rank.
for _, s in ipairs(list) do
  local age = now - s.since
  if s.booked > 0 and age < TURN then s.rank = 3
  elseif s.booked == 0 and s.hungry and age >= TURN then s.rank = 2
  elseif s.booked > 0 then s.rank = 1
  else s.rank = 0 end
end
table.sort(list, function(a, b) if a.wants ~= b.wants then return a.wants < b.wants end return a.id < b.id end)
local left, readers, level = limit, 0, nil
for i, s in ipairs(list) do
  local share = math.floor(left / (#list - i + 1))
  if not level and s.wants > share then level = share end
  s.fair = math.min(s.wants, level or s.wants)
  left = left - s.fair
  if s.wants > 0 then readers = readers + 1 end
end
table.sort(list, function(a, b)
  if a.rank ~= b.rank then return a.rank > b.rank end
  -- Who waits goes by how long he has; of those who have had their turn the last one keeps what he has.
  if a.since ~= b.since then if a.rank == 1 then return a.since > b.since end return a.since < b.since end
  return a.id < b.id
end)
local lacking, booked = false, others + held
for _, s in ipairs(list) do
  if left > 0 and s.wants > s.fair then s.fair, left = s.fair + 1, left - 1 end
  if s ~= mine and s.fair > s.booked then lacking = true end
end
-- What nobody asks for is shared, too: a burst should not have to ask first.
local fair = math.min(ceiling, mine.fair + (readers > 0 and math.floor(left / readers) or 0))
local cap = held
if fair > held then
  held = held + math.min(fair - held, math.max(limit - booked, 0))
  cap = held
elseif lacking or ceiling == 0 or booked > limit then
  cap = fair
end
redis.call('HSET', sessions, session .. ':grant',
  string.format('%d %d %d %d %d %d', held, wants, held > 0 and mine.booked == 0 and now or since, now, call, hungry and 1 or 0))
return { 'granted', cap }
