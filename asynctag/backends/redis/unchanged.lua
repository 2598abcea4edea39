-- Whether none of some tags was invalidated, hard or soft, since a stamp. What is leased counts as invalidated.
-- ARGV[5], [6]: the stamp, [7...]: the tags. -> epoch, seq, 1 if none was

open()
local tags, since = rest(7), tonumber(ARGV[6])
local changed = why_invalid(tonumber(ARGV[5]), since, tags) or softened_by(since, tags)
return { epoch, seq, changed and 0 or 1 }
