local admission = require "kong.plugins.llm-audit.admission"


-- A queue of 100 entries and 1600 bytes.
local function room(changes)
  local given = { entries = 10, bytes = 160, refused_entries = 0,
                  refused_bytes = 0, max_entries = 100, max_bytes = 1600 }
  for name, value in pairs(changes) do
    given[name] = value ~= "none" and value or nil
  end

  return given
end


describe("admission", function()
  for _, case in ipairs({
    -- what is there, size of the entry, whole, bare, refused
    { {}, 100, true, true, true },
    { { bytes = 1300 }, 100, true, true, true },
    { { bytes = 1301 }, 100, false, true, false },
    { { bytes = 1500 }, 100, false, true, false },
    { { bytes = 1501 }, 100, false, false, false },
    { { entries = 87 }, 1, true, true, true },
    { { entries = 88 }, 1, false, true, false },
    { { entries = 99 }, 1, false, true, false },
    { { entries = 100 }, 1, false, false, false },
    -- a sixteenth: 6 entries, 100 bytes
    { { refused_entries = 5 }, 1, true, true, true },
    { { refused_entries = 6 }, 1, true, true, false },
    { { refused_bytes = 50 }, 50, true, true, true },
    { { refused_bytes = 50 }, 51, true, true, false },
    -- whatever fits at all has a place in an empty queue, once
    { { entries = 0, bytes = 0 }, 1600, true, true, false },
    { { entries = 0, bytes = 0 }, 1601, false, false, false },
    { { entries = 1, bytes = 1 }, 1599, false, true, false },
    -- no limit of bytes
    { { bytes = 0, max_bytes = "none" }, 1e9, true, true, true },
    { { entries = 100, max_bytes = "none" }, 1, false, false, false },
  }) do
    local given, size = room(case[1]), case[2]
    for i, kind in ipairs({ "whole", "bare", "refused" }) do
      it(("says %s to %d bytes (%s) with %d entries, %d bytes")
         :format(tostring(case[2 + i]), size, kind, given.entries,
                 given.bytes), function()
        assert.equal(case[2 + i], admission.fits(given, size, kind))
      end)
    end
  end
end)
