-- session/join.lua — begin a session: versions, groups, first gate, record, lease.
-- KEYS  1 gate  2 gatestate  3 history  4 versions  5 sessions  6 lease  7 log  8 main stream  9 head  10 high  11 low
--       12 suspect  13.. lanes of my versions
-- ARGV  1 session  2 lease ms  3 record JSON  4 build or ''  5 queue name  6 'allow' another build, or ''
--       7.. my versions, in the order of their lanes
-- Reply {'joined', 'seeded'|''} | {'no_group'} | {'build'|'retired', version, its build}: it is known under another build
-- Keeps P8: seeds only when neither gate state nor group ever existed; never recreates a group under retained tasks.
-- One label is one build, so that what ran on a version says what ran.
local sessions, lease, log = KEYS[5], KEYS[6], KEYS[7]
local session, build, queue, allow = ARGV[1], ARGV[4], ARGV[5], ARGV[6] ~= ''
local FIRST = 7

local function refused_of(record) return type(record.refused) == 'table' and record.refused or {} end
local function without(list, text)
  local out = {}
  for _, other in ipairs(list) do
    if other ~= text then out[#out + 1] = other end
  end
  return #out > 0 and out or nil -- cjson takes an empty list for an object
end
-- Before anything is written: a session that is refused leaves nothing behind but one word in the log.
for i = FIRST, #ARGV do
  local record = record_of(ARGV[i]) or {}
  local builds = builds_of(record)
  if build ~= '' and #builds > 0 and not holds(builds, build) and (is_retired(record) or not allow) then
    -- P10: it is tried again and again, by every worker of that build: said once.
    if not holds(refused_of(record), build) then
      record.refused = with_newest(refused_of(record), build)
      keep_record(ARGV[i], record)
      redis.call('XADD', log, '*', 'kind', 'build_refused', 'session', '', 'at', now_us(), 'record', ARGV[3],
        'text', 'version ' .. ARGV[i] .. ' is known as build ' .. builds[#builds] .. ', refused as build ' .. build)
    end
    return { is_retired(record) and 'retired' or 'build', ARGV[i], builds[#builds] }
  end
end

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
-- The first version that may be routed to: an old record may say of one that it may not.
local active
for i = FIRST, #ARGV do
  local record = record_of(ARGV[i])
  local builds = record and builds_of(record)
  if not record then
    keep_record(ARGV[i], { first_seen_us = at, build = build })
  elseif build ~= '' and not is_retired(record) and not holds(builds, build) then
    if #builds > 0 then
      record.builds = with_newest(builds, build)
      redis.call('XADD', log, '*', 'kind', 'version', 'session', session, 'at', at,
        'text', 'version ' .. ARGV[i] .. ', so far build ' .. builds[#builds] .. ', is now also build ' .. build)
    end
    record.build, record.refused = build, without(refused_of(record), build)
    keep_record(ARGV[i], record)
  end
  if not active and known(ARGV[i]) then active = ARGV[i] end
end
local groups = listed or ''
for i = 8, #KEYS do
  if not has_group(KEYS[i]) then redis.call('XGROUP', 'CREATE', KEYS[i], 'workers', '0', 'MKSTREAM') end
  if not (listed and had_group(i)) then groups = groups .. ' ' .. KEYS[i] end
end
if groups ~= listed then redis.call('HSET', versions, ':groups', groups) end
local seeded = ''
if first and active then
  local blank = { rev = 0, digest = '', active = active, candidate = '', percent = '0', pins = '', targets = '', paused = '0' }
  local seed = { active = active, candidate = '', percent = '0', pins = '', targets = '', paused = '0' }
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
