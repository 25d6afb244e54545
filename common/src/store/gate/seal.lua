-- gate/seal.lua — turn a person's edit of the gate into a validated, numbered, logged revision.
-- KEYS  1 gate  2 gatestate  3 history  4 versions
-- ARGV  1 source of the edit, as far as the caller knows: `redis-cli`
-- Reply {'same'|'sealed'|'refused'|'restored', state…} | {'unsealed'}
-- Keeps P3: the reply is itself a gate read, made after whatever the caller did before. P9: see core.lua.
local g, word = seal_pending(ARGV[1])
if not g then return { 'unsealed' } end
return reply(word, g)
