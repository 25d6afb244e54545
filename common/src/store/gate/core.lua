#!lua flags=allow-oom
-- gate/core.lua — what every gate script shares: judging people's edits and writing revisions.
-- KEYS  1 gate  2 gatestate  3 history  4 versions
-- ARGV  by the script that follows
-- Reply by the script that follows; a state is {rev, digest, time_us, active, candidate, percent, pins, targets, paused, prev,
--       cancels, stops, probe, rollout}
-- Keeps P8 (missing or invalid: the sealed state stays), P9 (one history entry per effective change).
local gate, state, history, versions = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local FIELDS = { 'active', 'candidate', 'percent', 'pins', 'paused', 'targets' }
local SETTABLE = { active = 1, candidate = 1, percent = 1, pins = 1, targets = 1, paused = 1, only = 1, inflight = 1, by = 1, why = 1 }
-- P8: a release that writes another format also writes another kind of `seen`, so that workers of this one come here;
-- they start nothing, and nobody of this release overwrites what it cannot read.
-- Format 2 is a state with targets: the release before does not know them, and must not route as if there were none.
if tonumber(redis.call('HGET', state, 'format') or '1') > 2 then
  do return redis.error_reply('NEWERGATE the gate state is of a newer format than this release knows: upgrade what asks') end
end
local HISTORY_KEPT, MAX_PINS, MAX_PIN_BYTES, MAX_NOTED = 10000, 1000, 32768, 20
local MAX_TARGETS, MAX_TARGET_BYTES, MAX_TARGET_VALUE = 100, 8192, 256

local function now_us()
  local t = redis.call('TIME')
  return string.format('%d%06d', t[1], t[2])
end

local function hash(key)
  local flat, out = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do out[flat[i]] = flat[i + 1] end
  return out
end

-- The gate as people left it. P8: a key of another type (`SET` for `HSET`) is a lost gate, not a dead queue.
local function gate_hash()
  local kind = redis.call('TYPE', gate).ok
  if kind == 'hash' or kind == 'none' then return hash(gate) end
  redis.call('DEL', gate)
  return {}
end

-- `<` on strings follows the server's locale; revisions and fingerprints must not.
local function by_bytes(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- Byte-sorted, length-prefixed: equal text means equal hash. Rust builds the same from HGETALL.
local function fingerprint(fields)
  local names, out = {}, {}
  for name in pairs(fields) do names[#names + 1] = name end
  table.sort(names, by_bytes)
  for _, name in ipairs(names) do
    out[#out + 1] = #name .. ':' .. name .. #fields[name] .. ':' .. fields[name]
  end
  return table.concat(out)
end

-- What the human hash looks like after a seal. P8: that of format 2 equals no fingerprint, so that a worker of the release
-- before comes to seal, learns that it cannot read this state, and starts nothing.
local function seen_of(people)
  return (people.targets and '2 ' or '') .. fingerprint(people)
end

local function sealed()
  local v = redis.call('HMGET', state, 'rev', 'digest', 'prev', unpack(FIELDS))
  if not v[1] then return nil end
  local g = { rev = tonumber(v[1]), digest = v[2], prev = v[3] or '' }
  for i, name in ipairs(FIELDS) do g[name] = v[i + 3] or '' end
  return g
end

local function digest(g)
  local out = {}
  for _, name in ipairs(FIELDS) do
    -- A gate without targets has the digest that it had before there were any.
    if name ~= 'targets' or g.targets ~= '' then out[#out + 1] = g[name] end
  end
  return redis.sha1hex(table.concat(out, '\0'))
end

-- What people see of a state: no field without a meaning.
local function for_people(g)
  local out = { active = g.active, paused = g.paused }
  if g.candidate ~= '' then out.candidate, out.percent = g.candidate, g.percent end
  if g.pins ~= '' then out.pins = g.pins end
  if g.targets ~= '' then out.targets = g.targets end
  return out
end

-- What becomes of attempts that run on withdrawn versions when an edit is sealed; `finish` changes nothing.
local POLICIES = { finish = 1, cancel = 1, revoke = 1 }
local function stops(g) return g.inflight == 'cancel' or g.inflight == 'revoke' end

-- A list of versions of another type is a lost one.
local function entry_of(version)
  local entry = redis.pcall('HGET', versions, version)
  return type(entry) == 'string' and entry or nil
end

-- Why nothing may be routed to a version; nil if it may. A retired one keeps its record, and so its label.
local vouched = {} -- versions that need no record: they are active already
local function barred(version)
  if string.sub(version, 1, 1) == ':' then return 'unknown version' end -- that is a note among the versions
  local record = version ~= '' and entry_of(version)
  if not record then return (version == '' or not vouched[version]) and 'unknown version' or nil end
  if not string.find(record, '"retired_us"', 1, true) then return nil end
  local ok, fields = pcall(cjson.decode, record)
  local retired = ok and type(fields) == 'table' and fields.retired_us
  return retired and retired ~= cjson.null and 'retired version' or nil
end
local function known(version) return not barred(version) end

local function canonical_percent(text)
  if not (string.match(text, '^%d+$') or string.match(text, '^%d+%.%d+$')) or #text > 12 then return nil end
  local milli = math.floor(tonumber(text) * 1000 + 0.5)
  if milli > 100000 then return nil end
  local out = string.format('%.3f', milli / 1000)
  return (string.gsub(string.gsub(out, '0+$', ''), '%.$', ''))
end

-- Pairs `name=version name=version …`, the last of a name counts, sorted; `problem` judges a name.
local function canonical_pairs(text, what, name_is, most, bytes, problem)
  if #text > bytes then return nil, 'longer than ' .. bytes .. ' bytes' end
  local by_name, names = {}, {}
  for pair in string.gmatch(text, '%S+') do
    local name, version = string.match(pair, '^(.+)=([^=]+)$')
    local wrong = not name and 'not ' .. name_is .. '=version' or problem and problem(name)
    if wrong then return nil, wrong .. ': ' .. string.sub(pair, 1, 80) end
    if barred(version) then return nil, barred(version) .. ' ' .. string.sub(version, 1, 64) end
    if not by_name[name] then names[#names + 1] = name end
    by_name[name] = version
  end
  if #names > most then return nil, 'more than ' .. most .. ' ' .. what end
  table.sort(names, by_bytes)
  for i, name in ipairs(names) do names[i] = name .. '=' .. by_name[name] end
  return table.concat(names, ' ')
end

local function canonical_pins(text)
  return canonical_pairs(text, 'pins', 'key', MAX_PINS, MAX_PIN_BYTES)
end

local function canonical_targets(text)
  return canonical_pairs(text, 'targets', 'header:value', MAX_TARGETS, MAX_TARGET_BYTES, function(name)
    local header, value = string.match(name, '^([^:]*):(.+)$')
    if not header then return 'not header:value=version' end
    if #header > 64 or not string.match(header, '^[A-Za-z0-9._-]+$') then return 'not the name of a header' end
    if #value > MAX_TARGET_VALUE then return 'a value longer than ' .. MAX_TARGET_VALUE .. ' bytes' end
  end)
end

-- Those of `name=version …` that go to `version`.
local function pairs_to(text, version)
  local kept = {}
  for pair in string.gmatch(text, '%S+') do
    if string.match(pair, '=([^=]+)$') == version then kept[#kept + 1] = pair end
  end
  return table.concat(kept, ' ')
end

local OFF = { ['0'] = 1, ['false'] = 1, ['no'] = 1, ['off'] = 1, [''] = 1 }
local function judge_paused(text) return OFF[string.lower(text)] and '0' or '1' end

-- Judges the wanted fields against the sealed state. Returns the state to seal and what was refused or dropped.
local function judge(cur, want)
  local new, refused, dropped = {}, {}, {}
  for _, name in ipairs(FIELDS) do new[name] = cur[name] end
  new.paused = judge_paused(want.paused or '') -- alone and always
  -- P8: should the list of versions be lost, what is active stays, and the candidate beside it can be taken away.
  vouched[cur.active] = true
  local only = want.only
  if only and known(only) then
    -- P3: the rollback that always works, whatever else was going on. What came with it is dropped.
    new.active, new.candidate, new.percent = only, '', '0'
    new.pins, new.targets = pairs_to(cur.pins, only), pairs_to(cur.targets, only)
    local was = for_people(cur)
    for name, value in pairs(want) do
      if name ~= 'only' and name ~= 'paused' and name ~= 'by' and name ~= 'why' and value ~= was[name] and name ~= 'inflight' then
        dropped[name] = string.sub(value, 1, 200)
      end
    end
    new.inflight = POLICIES[want.inflight] and want.inflight
    if want.inflight and not new.inflight then dropped.inflight = string.sub(want.inflight, 1, 200) end
    return new, refused, dropped
  end
  local function refuse(name, reason)
    refused[name] = string.sub(want[name] or '', 1, 200) .. ': ' .. reason
  end
  if only then refuse('only', barred(only)) end
  for name in pairs(want) do
    if not SETTABLE[name] then refuse(name, 'unknown field') end
  end
  if want.inflight and not POLICIES[want.inflight] then refuse('inflight', 'not one of: finish, cancel, revoke') end
  local active = want.active or cur.active -- a deleted field does not unset it
  if not known(active) and active ~= cur.active then refuse('active', active == '' and 'empty' or barred(active)) end
  local candidate = want.candidate or ''
  if candidate ~= '' and candidate ~= cur.candidate and not known(candidate) then refuse('candidate', barred(candidate)) end
  local percent = want.percent and canonical_percent(want.percent) or (not want.percent and '0')
  if not percent then refuse('percent', 'not a number from 0 to 100') end
  local pins, problem = cur.pins, nil
  if (want.pins or '') ~= cur.pins then pins, problem = canonical_pins(want.pins or '') end
  if problem then refuse('pins', problem) end
  local targets, wrong = cur.targets, nil
  if (want.targets or '') ~= cur.targets then targets, wrong = canonical_targets(want.targets or '') end
  if wrong then refuse('targets', wrong) end
  if percent and percent ~= '0' and candidate == '' and percent ~= cur.percent then refuse('percent', 'there is no candidate') end
  if next(refused) then return new, refused, dropped end
  new.inflight = want.inflight

  local new_candidate = candidate ~= cur.candidate
  if active ~= cur.active and not new_candidate and candidate ~= '' then
    dropped.candidate, candidate, percent = candidate, '', '0' -- it belonged to the old active
  elseif new_candidate and candidate ~= '' and percent == cur.percent and percent ~= '0' then
    dropped.percent, percent = percent, '0' -- yesterday's percent is not today's
  end
  if candidate == active then candidate = '' end
  if candidate == '' then percent = '0' end
  new.active, new.candidate, new.percent, new.pins, new.targets = active, candidate, percent, pins, targets
  return new, refused, dropped
end

-- P10: whatever people wrote, what the history keeps of it is bounded.
local function json(t)
  local out, n = {}, 0
  for name, text in pairs(t) do
    n = n + 1
    if n <= MAX_NOTED then out[string.sub(name, 1, 64)] = text end
  end
  if n > MAX_NOTED then out['...'] = 'and ' .. n - MAX_NOTED .. ' more' end
  return n > 0 and cjson.encode(out) or ''
end

-- The versions that a task may be routed to: `Gate::reaches` in Rust says the same. A pause withdraws nothing.
local function reach(g)
  local out = {}
  if g.percent ~= '100' then out[g.active] = true end
  if g.percent ~= '0' then out[g.candidate] = true end
  for pair in string.gmatch(g.pins .. ' ' .. (g.targets or ''), '%S+') do out[string.match(pair, '=([^=]+)$') or ''] = true end
  return out
end

-- P3: what was started before `g` on a version that `g` does not reach is told to end (`cancel_rev`), and if it is revoked
-- its results are refused (`min_rev`, see settle.lua). `stops` tells every gate read from now on that there is news.
local function stop_withdrawn(g, cur)
  local reached, fields, all = reach(g), { 'stops', g.rev }, {}
  -- Also should the list of versions be lost: what was reached until now.
  local listed = redis.pcall('HKEYS', versions)
  for _, version in ipairs(listed.err and {} or listed) do all[version] = true end
  for version in pairs(reach(cur)) do all[version] = version ~= '' or nil end
  for version in pairs(all) do
    if not reached[version] and string.sub(version, 1, 1) ~= ':' then
      fields[#fields + 1], fields[#fields + 2] = 'cancel_rev:' .. version, g.rev
      if g.inflight == 'revoke' then fields[#fields + 1], fields[#fields + 2] = 'min_rev:' .. version, g.rev end
    end
    if #fields >= 1000 then -- one call takes some 8000 values
      redis.call('HSET', state, unpack(fields))
      fields = { 'stops', g.rev }
    end
  end
  redis.call('HSET', state, unpack(fields))
end

-- Seals `new` if it differs from `cur` or stops what runs, writes the human hash back, remembers what it looks like then.
local function write(cur, new, raw, meta)
  local at, wanted = now_us(), digest(new)
  new.rev, new.digest, new.prev = cur.rev, wanted, cur.prev
  if wanted ~= cur.digest or stops(new) then
    if stops(new) then meta.inflight = new.inflight end
    new.rev = math.max(cur.rev, meta.above or 0) + 1
    -- P9: the history first. If it cannot be written nothing is sealed, for a script's writes are not rolled back.
    local entry = { 'kind', 'change', 'rev', new.rev, 'at', at, 'source', meta.source, 'by', meta.by or '', 'why', meta.why or '',
      'op', meta.op or '', 'digest', wanted, 'before', json(meta.first and {} or for_people(cur)), 'after', json(for_people(new)),
      'dropped', json(meta.dropped or {}) }
    for _, name in ipairs({ 'forced', 'inflight' }) do
      if (meta[name] or '') ~= '' then entry[#entry + 1], entry[#entry + 2] = name, meta[name] end
    end
    redis.call('XADD', history, 'MAXLEN', '~', HISTORY_KEPT, '*', unpack(entry))
    new.prev = cur.rev .. ':' .. cur.digest
    redis.call('HSET', state, 'rev', new.rev, 'digest', wanted, 'prev', new.prev, 'sealed_at', at,
      'active', new.active, 'candidate', new.candidate, 'percent', new.percent, 'pins', new.pins, 'paused', new.paused)
    if new.targets ~= '' then
      redis.call('HSET', state, 'targets', new.targets, 'format', 2)
    else
      redis.call('HDEL', state, 'targets', 'format')
    end
    if stops(new) then stop_withdrawn(new, cur) end
  end
  -- A state that begins anew tells every session to read the marks of cancelled tasks again: see cancel.lua.
  if meta.first then redis.call('HSET', state, 'cancels', at) end
  local people = for_people(new)
  for name, value in pairs(people) do
    if raw[name] ~= value then redis.call('HSET', gate, name, value) end
  end
  for name in pairs(raw) do
    if not people[name] then redis.call('HDEL', gate, name) end
  end
  local seen = seen_of(people)
  if redis.call('HGET', state, 'seen') ~= seen then redis.call('HSET', state, 'seen', seen) end
  return new
end

local function note(kind, cur, meta)
  redis.call('XADD', history, 'MAXLEN', '~', HISTORY_KEPT, '*', 'kind', kind, 'rev', cur.rev, 'at', now_us(),
    'source', meta.source, 'by', meta.by or '', 'why', meta.why or '', 'op', meta.op or '',
    'dropped', json(meta.dropped or {}), 'refused', json(meta.refused or {}))
end

-- Seals whatever people changed since the last look. Returns the state in force and a word for what happened.
local function seal_pending(source)
  local cur = sealed()
  if not cur then return nil, 'unsealed' end
  local raw = gate_hash()
  if seen_of(raw) == redis.call('HGET', state, 'seen') then return cur, 'same' end
  local want = {}
  for name, value in pairs(raw) do want[name] = value end
  if not raw.active then
    -- Seal always leaves `active`: the hash was lost, and what is there now says nothing of what is not.
    note('restored', cur, { source = source, why = 'the gate hash, or its active version, was missing; the sealed state stays in force' })
    for name, value in pairs(for_people(cur)) do want[name] = want[name] or value end
  end
  local meta = { source = source, by = string.sub(raw.by or '', 1, 64), why = string.sub(raw.why or '', 1, 500) }
  local new, refused, dropped = judge(cur, want)
  meta.refused, meta.dropped = refused, dropped
  new = write(cur, new, raw, meta)
  if next(refused) then
    note('refused', new, meta)
    return new, 'refused'
  end
  if new.rev > cur.rev then return new, 'sealed' end
  if raw.by or raw.why or next(dropped) then note('note', new, meta) end
  return new, raw.active and 'same' or 'restored'
end

local function reply(word, g)
  local signals = redis.call('HMGET', state, 'cancels', 'stops', 'probe', 'rollout')
  for i = 1, 4 do signals[i] = signals[i] or '0' end
  return { word, g.rev, g.digest, now_us(), g.active, g.candidate, g.percent, g.pins, g.targets, g.paused, g.prev or '', unpack(signals) }
end
