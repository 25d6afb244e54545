-- dead/discard.lua — delete dead letters for good.
-- KEYS  1 dead  2 log
-- ARGV  1 by  2 why  3 operation  4 salt of the dead letters  5.. entries
-- Reply {'discarded', n}; an entry that is not there (any more) is passed over, so a resend changes nothing
-- Keeps P1: who ended them, and why, is in the log before they are gone: ids, and nothing of the payload.
local dead, log = KEYS[1], KEYS[2]
local found, tasks = {}, {}
for i = 5, #ARGV do
  local entry = redis.call('XRANGE', dead, ARGV[i], ARGV[i])[1]
  if entry then
    found[#found + 1] = entry[1]
    local fields = defaulted(entry, ARGV[4])
    tasks[#found] = string.sub(value_of(fields, 'id'), 1, 64) .. '=' .. entry[1]
  end
end
if #found == 0 then return { 'discarded', 0 } end
redis.call('XADD', log, '*', 'kind', 'discarded', 'by', ARGV[1], 'why', ARGV[2], 'op', ARGV[3],
  'count', #found, 'first', found[1], 'last', found[#found], 'tasks', table.concat(tasks, ' '))
redis.call('XDEL', dead, unpack(found))
return { 'discarded', #found }
