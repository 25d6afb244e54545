-- dead/chain.lua — what scripts that give attempts back share: which attempts the error chain tells of.
-- KEYS  by the script that follows
-- ARGV  by the script that follows
-- Reply by the script that follows
-- Keeps P6: attempts that an operation made void do not count, and are given back once: an error whose attempt was given
-- back has number 0 from then on, which releases that know nothing of this leave alone. Those that stay are numbered anew.
-- The chain is that of the present life: a plain requeue begins another, whose numbers begin at 1 again.
-- Returns how many attempts on `version` count no more, how many the chain tells nothing of (it holds the last 10), the
-- fields that change, the latest error on that version, and whether that was the last attempt of all.
local function give_back(fields, version)
  local made = tonumber(value_of(fields, 'attempt') or '') or 0
  local ok, chain = pcall(cjson.decode, value_of(fields, 'errors') or '[]')
  if not ok or type(chain) ~= 'table' then chain = {} end
  local given, told, before, latest, was_last = {}, {}, made + 1, nil, false
  for i = #chain, 1, -1 do
    local it = chain[i]
    local number = type(it) == 'table' and type(it.attempt) == 'number' and it.attempt or 0
    if number >= before then break end
    if number > 0 then
      before = number
      if it.version == version then
        given[#given + 1], latest, was_last = it, latest or it, was_last or #told == 0
      end
      told[#told + 1] = it
    end
  end
  if #given == 0 then return 0, made - #told, {}, nil, false end
  local below = 0
  for i = #told, 1, -1 do
    local it = told[i]
    if it.version == version then
      it.attempt, below = 0, below + 1
    else
      it.attempt = it.attempt - below
    end
  end
  local changed = { attempt = string.format('%.0f', made - #given), errors = cjson.encode(chain) }
  return #given, made - #told, changed, latest, was_last
end
