#!lua flags=allow-oom
-- absence/note.lua — say once that the gate sends tasks to a version that no live worker has, and once that this is over.
-- KEYS  1 versions  2 log
-- ARGV  1 session  2 grace, µs: how long it must last  3 the versions that the gate reaches, each between spaces
--       4.. those of them that no live worker has, at most 100
-- Reply {'noted', pending, began…}: how many are not yet old enough to be spoken of, and those that were spoken of just now
-- Keeps P6's other half: parked tasks burn nothing, so somebody has to be told. P10: whatever the gate reaches, a call writes
-- about 100 versions at most.
-- `:absent` holds `version~µs` since when it is known, `version=µs` once the log says so. A look that is older than the
-- worker which has just joined can start the clock, but not speak.
local versions, log = KEYS[1], KEYS[2]
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]

local since, told = {}, {}
local was = redis.call('HGET', versions, ':absent') or ''
for version, mark, us in string.gmatch(was, '([A-Za-z0-9._-]+)([=~])(%d+)') do
  since[version], told[version] = tonumber(us), mark == '='
end

local function say(version, state, text)
  redis.call('XADD', log, '*', 'kind', 'alert', 'session', ARGV[1], 'at', string.format('%.0f', now),
    'code', 'no_worker_for_version', 'version', version, 'state', state, 'text', text)
end

local is, began, pending = {}, {}, 0
for i = 4, math.min(#ARGV, 103) do
  local version = ARGV[i]
  local from = since[version] or now
  if not told[version] then
    if now - from >= tonumber(ARGV[2]) then
      told[version] = true
      began[#began + 1] = version
      say(version, 'raised', 'no live worker has ' .. version .. ', and the gate sends tasks to it: they wait until one joins')
    else
      pending = pending + 1
    end
  end
  is[#is + 1] = version .. (told[version] and '=' or '~') .. string.format('%.0f', from)
  since[version] = nil
end
for version in pairs(since) do
  if told[version] then
    local reached = string.find(ARGV[3], ' ' .. version .. ' ', 1, true)
    say(version, 'cleared', reached and 'a live worker has ' .. version .. ' now: its tasks run'
      or 'the gate sends nothing to ' .. version .. ' any more')
  end
end
local text = table.concat(is, ' ')
if text ~= was then
  if text == '' then redis.call('HDEL', versions, ':absent') else redis.call('HSET', versions, ':absent', text) end
end
return { 'noted', pending, unpack(began) }
