-- gate/rollout.lua — one step of a rollout: its gate, its record, its signal and the log, whole or not at all.
-- KEYS  1 gate  2 gatestate  3 history  4 versions  5 rollout  6 log  7 driver
-- ARGV  1 'start'|'go'|'dry'  2 id or ''  3 serial or ''  4 revision it was judged against or ''  5 driving session or ''
--       6 source  7 by  8 why  9 operation id or ''  10 text for the log or ''  11 evidence JSON or ''
--       12 a version or ''  13 its entry as it was  14 its entry to be, with @rev@ and @at_us@
--       15 objections passed over or ''  16 n, then n (gate field, value), then (rollout field, value)*
-- Reply {'written'|'would', serial, id, state…} | {'moved', state…} | {'stale'} | {'not_driver'} | {'running', id}
--       | {'refused', field, reason} | {'unsealed'}
-- Keeps P9: seals what is pending first and writes only onto the revision it was judged against, so a person's edit always
-- wins; the serial grows with every step, so a resend, or a driver that was overtaken, changes nothing.
local rollout, log, driver = KEYS[5], KEYS[6], KEYS[7]
local LIVE = { running = 1, paused = 1, held = 1, watching = 1 }
local act, source, op = ARGV[1], ARGV[6], ARGV[9]
local function type_of(key) return redis.call('TYPE', key).ok end
-- A record of another type is a lost one: `rollout abort --keep` finds neither id nor serial, and begins it anew.
local now, broken = {}, type_of(rollout) ~= 'hash'
if not broken then now = hash(rollout) end
if ARGV[5] ~= '' and (type_of(driver) ~= 'string' or redis.call('GET', driver) ~= ARGV[5]) then return { 'not_driver' } end
local cur = seal_pending('redis-cli')
if not cur then return { 'unsealed' } end

local function answer(word, g, serial, id)
  local out = reply(word, g)
  table.insert(out, 2, serial)
  table.insert(out, 3, id)
  return out
end
if op ~= '' and now.op == op then return answer('written', cur, now.serial, now.id) end
local function same(found, read) return (found or '') == read or not found and read == '0' end
if act == 'go' then
  if not same(now.id, ARGV[2]) or not same(now.serial, ARGV[3]) then return { 'stale' } end
elseif LIVE[now.status or ''] then
  return { 'running', now.id or '0' }
end
if ARGV[4] ~= '' and tonumber(ARGV[4]) ~= cur.rev then return reply('moved', cur) end
-- An entry that was not text when it was read cannot be compared: it is replaced.
local readable = not string.find(ARGV[13], '\239\191\189', 1, true)
if ARGV[12] ~= '' and readable and (entry_of(ARGV[12]) or '') ~= ARGV[13] then return { 'stale' } end

local fields = tonumber(ARGV[16])
local at, new = now_us(), cur
if fields > 0 then
  -- P8: the way back is open although the list of versions is lost; `from` was there when this began.
  vouched[now.from or ''] = true
  local want, asked = for_people(cur), {}
  for name, value in pairs(cur) do asked[name] = value end
  for i = 17, 16 + 2 * fields, 2 do want[ARGV[i]] = ARGV[i + 1] end
  -- Whoever names the percent means it, even if it equals the old one: see change.lua. `only` names neither.
  if not want.only then asked.percent, asked.candidate = '', want.candidate and '' or asked.candidate end
  local judged, refused, dropped = judge(asked, want)
  for name, reason in pairs(refused) do return { 'refused', name, reason } end
  if act == 'dry' then
    judged.digest = digest(judged)
    judged.rev = cur.rev + ((judged.digest ~= cur.digest or stops(judged)) and 1 or 0)
    return answer('would', judged, '0', '0')
  end
  new = write(cur, judged, gate_hash(), { source = source, by = string.sub(ARGV[7], 1, 64), why = string.sub(ARGV[8], 1, 500),
    op = op, dropped = dropped, forced = string.sub(ARGV[15], 1, 1000) })
end
-- Somebody may have made anything of them.
local function number(text)
  return string.match(text or '', '^%d+$') and #text < 17 and tonumber(text) or 0
end
local serial, id = string.format('%.0f', number(now.serial) + 1), string.format('%.0f', number(now.id))
if broken then redis.call('DEL', rollout) end
if act == 'start' then
  id = at
  redis.call('DEL', rollout)
  redis.call('HSET', rollout, 'id', id, 'started_us', at, 'step_since_us', at, 'looked_us', at, 'ended_before_us', string.format('%.0f', number(now.at_us)))
end
redis.call('HSET', rollout, 'serial', serial, 'rev', new.rev, 'at_us', at)
if op ~= '' then redis.call('HSET', rollout, 'op', op) end
for i = 17 + 2 * fields, #ARGV, 2 do redis.call('HSET', rollout, ARGV[i], ARGV[i + 1]) end
local signal = LIVE[redis.call('HGET', rollout, 'status') or ''] and id or '0'
if redis.call('HGET', state, 'rollout') ~= signal then redis.call('HSET', state, 'rollout', signal) end
if ARGV[12] ~= '' then
  local marked = string.gsub(string.gsub(ARGV[14], '@rev@', tostring(new.rev)), '@at_us@', at)
  redis.pcall('HSET', versions, ARGV[12], marked) -- the rollback matters more than its mark
end
if ARGV[10] ~= '' then
  -- The newest few, for people; the log has all of them.
  local events = at .. ' ' .. string.gsub(ARGV[10], '%c', ' ') .. '\n' .. (act == 'go' and now.events or '')
  redis.call('HSET', rollout, 'events', string.sub(events, 1, 8000))
  -- The log is evidence, not state: what is wrong with it must not keep a bad version running.
  redis.pcall('XADD', log, '*', 'kind', 'rollout', 'session', ARGV[5], 'at', at, 'rev', new.rev, 'by', string.sub(ARGV[7], 1, 64),
    'text', ARGV[10], 'evidence', ARGV[11])
end
return answer('written', new, serial, id)
