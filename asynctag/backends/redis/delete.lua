-- Remove an entry, and invalidate its key as a tag: a computation that began before does not bring it back.
-- KEYS[2]: the entry. ARGV[5]: its key as a tag. -> epoch, seq, 1 if one was there

open()
local _, its_epoch = head_of(KEYS[2])
local was_there = its_epoch == epoch and 1 or 0
invalidate(take_number(), { ARGV[5] })
redis.call('UNLINK', KEYS[2])
prune(1)
return { epoch, seq, was_there }
