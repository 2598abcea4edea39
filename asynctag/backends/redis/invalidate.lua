-- Make every entry that carries one of the tags invalid, or stale. Whatever the number of entries.
-- ARGV[5]: "hard" or "soft", [6...]: the tags. -> epoch, seq

open()
local tags = rest(6)
local number = take_number()
if ARGV[5] == 'soft' then
  number_tags(number, tags, '~', nil)
  set('soft', number)
else
  invalidate(number, tags)
end
prune(#tags)
return { epoch, seq }
