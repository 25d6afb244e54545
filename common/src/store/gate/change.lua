-- gate/change.lua — change the gate on behalf of a person or a program.
-- KEYS  1 gate  2 gatestate  3 history  4 versions
-- ARGV  1 source  2 by  3 why  4 operation id  5 if_rev or ''  6 'dry' or ''  7 objections passed over or ''
--       8.. field, value, field, value…
-- Reply {'changed'|'same'|'would', state…} | {'refused', field, reason} | {'moved', state…} | {'unsealed'}
-- Keeps P9: seals what is pending first, so a human's edit wins; an operation id counts once, so a resend is harmless.
-- The last operations and how they ended, newest at the end: enough for any resend, and bounded.
local MAX_OPS_BYTES = 4096
local ops = redis.call('HGET', state, 'ops') or ''
local function remember(op, word)
  if op == '' then return end
  ops = ops .. ' ' .. op .. '=' .. word .. ';'
  if #ops > MAX_OPS_BYTES then ops = string.match(ops, ' .*$', #ops - MAX_OPS_BYTES) end
  redis.call('HSET', state, 'ops', ops)
end

local meta = { source = ARGV[1], by = string.sub(ARGV[2], 1, 64), why = string.sub(ARGV[3], 1, 500), op = string.gsub(string.sub(ARGV[4], 1, 64), '[%s=;]', '_'),
  forced = string.sub(ARGV[7], 1, 1000) }
local cur = seal_pending('redis-cli')
local wanted = {}
for i = 8, #ARGV, 2 do wanted[ARGV[i]] = ARGV[i + 1] end
if not cur then
  -- P8: the sealed state is gone. Only an explicit `active` may begin a new one, above every revision on record.
  if not known(wanted.active or wanted.only or '') then return { 'unsealed' } end
  meta.first = true
  local last = redis.call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1]
  local rev = 0
  if last then
    for i = 1, #last[2], 2 do if last[2][i] == 'rev' then rev = tonumber(last[2][i + 1]) end end
  end
  cur = { rev = rev, digest = '', active = wanted.active or wanted.only, candidate = '', percent = '0', pins = '', targets = '', paused = '0' }
end
-- Repeated? Not if the state it made is lost: then it is wanted again.
local _, found = string.find(ops, ' ' .. meta.op .. '=', 1, true)
if found and meta.op ~= '' and not meta.first then return reply(string.match(ops, '^[^;]+', found + 1), cur) end
if ARGV[5] ~= '' and tonumber(ARGV[5]) ~= cur.rev then return reply('moved', cur) end
local want = for_people(cur)
for name, value in pairs(wanted) do want[name] = value end
-- Whoever names the percent means it, even if it equals the old one.
local asked = cur
if wanted.percent then
  asked = {}
  for name, value in pairs(cur) do asked[name] = value end
  asked.percent = ''
  if wanted.candidate then asked.candidate = '' end
end
local new, refused, dropped = judge(asked, want)
for name, reason in pairs(refused) do return { 'refused', name, reason } end
meta.dropped = dropped
if ARGV[6] == 'dry' then
  new.digest = digest(new)
  new.rev = cur.rev + ((new.digest ~= cur.digest or stops(new)) and 1 or 0)
  return reply('would', new)
end
new = write(cur, new, gate_hash(), meta)
local word = new.rev > cur.rev and 'changed' or 'same'
remember(meta.op, word)
return reply(word, new)
