-- gate/hold.lua — stop a queue whose gate went backwards, until a person resumes it.
-- KEYS  1 gate  2 gatestate  3 history  4 versions
-- ARGV  1 revision the caller has obeyed  2 its digest
-- Reply {'held', state…} | {'fine', state…} | {'unsealed'}
-- Keeps P8: lower, same number with another content, or a history that does not know my revision = regressed.
-- One hold covers every revision below it, so that a fleet is held, and resumed, once.
local mine, mine_digest = tonumber(ARGV[1]), ARGV[2]
local cur = seal_pending('redis-cli')
if not cur then return { 'unsealed' } end
local regressed = cur.rev < mine or (cur.rev == mine and cur.digest ~= mine_digest)
if cur.rev > mine then
  regressed = redis.call('XLEN', history) < HISTORY_KEPT -- nothing trimmed: my revision must be on record
  local from, found = '+', false
  repeat
    local page = redis.call('XREVRANGE', history, from, '-', 'COUNT', 50)
    for _, entry in ipairs(page) do
      local f = {}
      for i = 1, #entry[2], 2 do f[entry[2][i]] = entry[2][i + 1] end
      local rev = tonumber(f.rev)
      if f.kind == 'change' and rev then
        if rev <= mine then
          found, regressed = true, rev < mine or f.digest ~= mine_digest
        elseif f.source == 'regress' then
          found, regressed = true, false -- held for another worker, past my revision: once is enough
        end
      end
      if found then break end
      from = '(' .. entry[1]
    end
  until found or #page == 0
end
if not regressed then return reply('fine', cur) end
local new = {}
for _, name in ipairs(FIELDS) do new[name] = cur[name] end
new.paused = '1'
-- Forced through even when already paused: newcomers must see the number, too.
local base = { rev = cur.rev, digest = '' }
for _, name in ipairs(FIELDS) do base[name] = cur[name] end
new = write(base, new, gate_hash(), { source = 'regress', above = mine,
  why = 'the gate went back from revision ' .. mine .. ' (a lost failover write?); check it, then resume' })
return reply('held', new)
