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
-- A key of a wrong type fails here, before anything is written.
local now = hash(rollout)
if ARGV[5] ~= '' and redis.call('GET', driver) ~= ARGV[5] then return { 'not_driver' } end
local cur = seal_pending('redis-cli')
if not cur then return { 'unsealed' } end

local function answer(word, g, serial, id)
  local out = reply(word, g)
  table.insert(out, 2, serial)
  table.insert(out, 3, id)
  return out
end
if op ~= '' and now.op == op then return answer('written', cur, now.serial, now.id) end
if act == 'go' then
  if now.id ~= ARGV[2] or now.serial ~= ARGV[3] then return { 'stale' } end
elseif LIVE[now.status or ''] then
  return { 'running', now.id or '0' }
end
if ARGV[4] ~= '' and tonumber(ARGV[4]) ~= cur.rev then return reply('moved', cur) end
if ARGV[12] ~= '' and (redis.call('HGET', versions, ARGV[12]) or '') ~= ARGV[13] then return { 'stale' } end

local fields = tonumber(ARGV[16])
local at, new = now_us(), cur
if fields > 0 then
  local want, asked = for_people(cur), {}
  for name, value in pairs(cur) do asked[name] = value end
  for i = 17, 16 + 2 * fields, 2 do want[ARGV[i]] = ARGV[i + 1] end
  -- Whoever names the percent means it, even if it equals the old one: see change.lua.
  asked.percent, asked.candidate = '', want.candidate and '' or asked.candidate
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
local serial, id = tostring((tonumber(now.serial or '0') or 0) + 1), now.id
if act == 'start' then
  id = at
  redis.call('DEL', rollout)
  redis.call('HSET', rollout, 'id', id, 'started_us', at, 'step_since_us', at, 'looked_us', at, 'ended_before_us', now.at_us or '0')
end
redis.call('HSET', rollout, 'serial', serial, 'rev', new.rev, 'at_us', at)
if op ~= '' then redis.call('HSET', rollout, 'op', op) end
for i = 17 + 2 * fields, #ARGV, 2 do redis.call('HSET', rollout, ARGV[i], ARGV[i + 1]) end
local signal = LIVE[redis.call('HGET', rollout, 'status') or ''] and id or '0'
if redis.call('HGET', state, 'rollout') ~= signal then redis.call('HSET', state, 'rollout', signal) end
if ARGV[12] ~= '' then
  local marked = string.gsub(string.gsub(ARGV[14], '@rev@', tostring(new.rev)), '@at_us@', at)
  redis.call('HSET', versions, ARGV[12], marked)
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
