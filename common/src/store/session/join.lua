-- session/join.lua — begin a session: versions, groups, first gate, record, lease.
-- KEYS  1 gate  2 gatestate  3 history  4 versions  5 sessions  6 lease  7 log  8 main stream  9 head  10 high  11 low
--       12 suspect  13.. lanes of my versions
-- ARGV  1 session  2 lease ms  3 record JSON  4 build  5 queue name  6.. my versions, in the order of their lanes
-- Reply {'joined', 'seeded'|''} | {'no_group'}
-- Keeps P8: seeds only when neither gate state nor group ever existed; never recreates a group under retained tasks.
local sessions, lease, log = KEYS[5], KEYS[6], KEYS[7]
local session, queue = ARGV[1], ARGV[5]

local function has_group(stream)
  if redis.call('EXISTS', stream) == 0 then return false end
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    for i = 1, #info, 2 do if info[i] == 'name' and info[i + 1] == 'workers' then return true end end
  end
  return false
end

-- Streams that once had their group. Releases before priorities wrote no list; those three streams are younger.
local listed = redis.call('HGET', versions, ':groups')
local function had_group(i)
  if listed then return string.find(' ' .. listed .. ' ', ' ' .. KEYS[i] .. ' ', 1, true) end
  return i < 10 or i > 12
end

local claimed_before = redis.call('EXISTS', state, history) > 0
for i = 8, #KEYS do
  -- From 0 it would run every retained task again: a person decides (`XGROUP CREATE … 0` or `$`).
  if claimed_before and had_group(i) and not has_group(KEYS[i]) and redis.call('XLEN', KEYS[i]) > 0 then
    return { 'no_group' }
  end
end
local first = not claimed_before and not has_group(KEYS[8])
local at = now_us()
for i = 6, #ARGV do
  redis.call('HSETNX', versions, ARGV[i], cjson.encode({ first_seen_us = at, build = ARGV[4] }))
end
local known = listed or ''
for i = 8, #KEYS do
  if not has_group(KEYS[i]) then redis.call('XGROUP', 'CREATE', KEYS[i], 'workers', '0', 'MKSTREAM') end
  if not (listed and had_group(i)) then known = known .. ' ' .. KEYS[i] end
end
if known ~= listed then redis.call('HSET', versions, ':groups', known) end
local seeded = ''
if first then
  local blank = { rev = 0, digest = '', active = ARGV[6], candidate = '', percent = '0', pins = '', targets = '', paused = '0' }
  local seed = { active = ARGV[6], candidate = '', percent = '0', pins = '', targets = '', paused = '0' }
  -- A gate that people wrote before the first worker came is kept aside and judged as their edit.
  local raw = gate_hash()
  write(blank, seed, {}, { source = 'seed', first = true, why = 'first version declared for ' .. queue })
  for name, value in pairs(raw) do redis.call('HSET', gate, name, value) end
  seeded = 'seeded'
end
redis.call('HSET', sessions, session, ARGV[3])
redis.call('SET', lease, session, 'PX', ARGV[2])
redis.call('XADD', log, '*', 'kind', 'joined', 'session', session, 'at', at, 'record', ARGV[3])
return { 'joined', seeded }
