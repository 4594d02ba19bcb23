// Prophesee EVT 2.0 and 3.0 (see datasets/prophesee_raw.py for the words): one pass, what is known so far in registers.
#include <algorithm>
#include <cstdint>
#include <cstring>

// Word i of a file's bytes: they begin behind a header of any length, so a word may lie at any address.
template <typename Word>
static inline Word loom_word(const Word* words, int64_t i) {
    Word word;
    std::memcpy(&word, (const char*)words + i * (int64_t)sizeof(Word), sizeof(Word));
    return word;
}

extern "C" {

// Events of `length` words of EVT 2.0; written to t, x, y, p unless t is null. Returns their number.
int64_t loom_evt2(const uint32_t* words, int64_t length, int64_t* t, int16_t* x, int16_t* y, uint8_t* p) {
    int64_t events = 0, high = -1;
    for (int64_t i = 0; i < length; ++i) {
        const uint32_t word = loom_word(words, i), kind = word >> 28;
        if (kind <= 1) {
            if (high < 0) continue;
            if (t) {
                t[events] = high << 6 | (word >> 22 & 0x3f);
                x[events] = (int16_t)(word >> 11 & 0x7ff);
                y[events] = (int16_t)(word & 0x7ff);
                p[events] = (uint8_t)kind;
            }
            ++events;
        } else if (kind == 8) {
            // the counter fell by more than half: it has turned
            const int64_t value = word & 0x0fffffff, before = high < 0 ? value : high & 0x0fffffff;
            high = ((high < 0 ? 0 : high >> 28) + (value - before < -(1 << 27))) << 28 | value;
        }
    }
    return events;
}

// The same of EVT 3.0.
int64_t loom_evt3(const uint16_t* words, int64_t length, int64_t* t, int16_t* x, int16_t* y, uint8_t* p) {
    const int64_t most = INT16_MAX;  // coordinates of damaged files that do not fit stay off every sensor
    int64_t events = 0, high = -1, low = 0, row = -1, base = -1, moved = 0;
    for (int64_t i = 0; i < length; ++i) {
        const uint16_t word = loom_word(words, i);
        const int64_t kind = word >> 12, payload = word & 0xfff;
        switch (kind) {
            case 0:
                row = payload & 0x7ff;
                break;
            case 2:
                if (high < 0 || row < 0) break;
                if (t) {
                    t[events] = high << 12 | low;
                    x[events] = (int16_t)(payload & 0x7ff);
                    y[events] = (int16_t)row;
                    p[events] = (uint8_t)(payload >> 11);
                }
                ++events;
                break;
            case 3:
                base = payload;
                moved = 0;
                break;
            case 4:
            case 5: {
                uint32_t bits = (uint32_t)(kind == 4 ? payload : payload & 0xff);
                if (high >= 0 && row >= 0 && base >= 0) {
                    if (t) {
                        for (int64_t at = events; bits; bits &= bits - 1, ++at) {
                            t[at] = high << 12 | low;
                            x[at] = (int16_t)std::min(most, (base & 0x7ff) + moved + __builtin_ctz(bits));
                            y[at] = (int16_t)row;
                            p[at] = (uint8_t)(base >> 11);
                        }
                        bits = (uint32_t)(kind == 4 ? payload : payload & 0xff);
                    }
                    events += __builtin_popcount(bits);
                }
                moved += kind == 4 ? 12 : 8;
                break;
            }
            case 6:
                low = payload;
                break;
            case 8: {
                // the counter fell by more than half: it has turned
                const int64_t before = high < 0 ? payload : high & 0xfff, turns = high < 0 ? 0 : high >> 12;
                high = (turns + (payload - before < -2048)) << 12 | payload;
                low = 0;
                break;
            }
        }
    }
    return events;
}
}
