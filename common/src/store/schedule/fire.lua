-- schedule/fire.lua — turn due ticks of one schedule into tasks, each once, whoever asks and however often.
-- KEYS  1 schedules  2 main stream  3 log
-- ARGV  1 schedule  2 digest of the definition that was read  3 session  4 payload  5 key or ''  6 newest tick that
--       passed, fired or not  7 most ms that the last tick may lie ahead  8 note for the log or '',
--       then per tick, oldest first: tick ms, task id, headers JSON
-- Reply {'changed'} | {'begun', last ms} | {'fired', n, last ms}
-- Keeps P2: task and last tick are written together, and only ticks after the last one fire. P10: like any new work,
-- refused at maxmemory; the tick is late then.
local schedules, main, log = KEYS[1], KEYS[2], KEYS[3]
local name, memory = ARGV[1], ARGV[1] .. ':last'
local definition = redis.call('HGET', schedules, name)
-- What was decided by an older definition is decided anew.
if not definition or redis.sha1hex(definition) ~= ARGV[2] then return { 'changed' } end

local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function remember(tick)
  local text = string.format('%.0f', tick)
  redis.call('HSET', schedules, memory, text)
  return text
end

local last = tonumber(string.match(redis.call('HGET', schedules, memory) or '', '^%d+$'))
-- A definition written by hand begins when it is first seen. So does one whose last tick cannot be right.
if not last or last > now + tonumber(ARGV[7]) then return { 'begun', remember(now) } end

local fired, before = {}, last
for i = 9, #ARGV, 3 do
  local tick = tonumber(ARGV[i])
  if tick > now then break end
  if tick > last then
    local fields = { 'id', ARGV[i + 1], 'payload', ARGV[4], 'headers', ARGV[i + 2] }
    if ARGV[5] ~= '' then fields[7], fields[8] = 'key', ARGV[5] end
    redis.call('XADD', main, '*', unpack(fields))
    fired[#fired + 1] = ARGV[i + 1]
    last = tick
  end
end
local newest = tonumber(ARGV[6])
if newest > last and newest <= now then last = newest end
if last > before then
  remember(last)
  redis.call('XADD', log, '*', 'kind', 'scheduled', 'session', ARGV[3],
    'text', name .. ': ' .. table.concat(fired, ' ') .. ARGV[8])
end
return { 'fired', #fired, string.format('%.0f', last) }
