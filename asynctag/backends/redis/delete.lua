-- Remove an entry, and invalidate its key as a tag: a computation that began before does not bring it back.
-- KEYS[2]: the entry. ARGV[4]: its key as a tag. -> epoch, seq, 1 if one was there

open()
local _, its_epoch = head_of(KEYS[2])
redis.call('UNLINK', KEYS[2])
number_tags(take_number(), { ARGV[4] }, '', 'GT')
return { epoch, seq, its_epoch == epoch and 1 or 0 }
