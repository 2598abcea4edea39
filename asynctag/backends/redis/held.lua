-- Whether a tag is held, its leases have not ended, and it was not invalidated since a number.
-- ARGV[5]: the number, [6]: the tag. -> epoch, seq, 1 if so

open()
local tag, since, before = ARGV[6], tonumber(ARGV[5]), nil
if redis.call('ZSCORE', journal, tag) == 'inf' then
  before = number_before(tag)
end
return { epoch, seq, before and before <= since and 1 or 0 }
