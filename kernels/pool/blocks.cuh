// The way back through max pooling with windows 3 x 3, stride 2, padding 1, by blocks of 2 x 2 pixels: the pixels
// (2i, 2i + 1) x (2j, 2j + 1) lie in the windows (i, i + 1) x (j, j + 1) and in no others, so that four reads serve
// four pixels. There are as many blocks as windows. In front of this text: `real`, `io`, `index_t` (counts lanes), the
// prelude, VECTOR.
typedef Pack<io, VECTOR> Lane;
struct __align__(VECTOR) Codes { unsigned char e[VECTOR]; };

// Where a map has no further row or column the step to it is 0, so that every read is inside the map.
struct Block {
    index_t first, down, right;  // lane of pixel (2i, 2j), and the steps to the next row and column
    bool rows, columns;          // whether pixels (2i + 1, .) and (., 2j + 1) exist
    bool windows[2][2];          // whether window (i + p, j + q) exists
    Lane grad[2][2];
    Codes code[2][2];
};

// a: sizes of the maps; grad, code: [M, out_height, out_width, lanes].
template <class Sizes>
LOOM_INLINE Block read_block(const Sizes& a, const io* grad, const unsigned char* code, index_t window, int lane) {
    const index_t lanes = (index_t)a.lanes, line = (index_t)a.out_width * lanes, at = window * lanes + (index_t)lane;
    const index_t row = window / (index_t)a.out_width, map = row / (index_t)a.out_height;
    const int i = (int)(row - map * (index_t)a.out_height), j = (int)(window - row * (index_t)a.out_width);
    const bool below = i + 1 < a.out_height, beside = j + 1 < a.out_width;
    Block b;
    b.rows = 2 * i + 1 < a.height, b.columns = 2 * j + 1 < a.width;
    const index_t top = map * (index_t)a.height + (index_t)(2 * i);
    b.first = (top * (index_t)a.width + (index_t)(2 * j)) * lanes + (index_t)lane;
    b.down = b.rows ? (index_t)a.width * lanes : 0, b.right = b.columns ? lanes : 0;
#pragma unroll
    for (int p = 0; p < 2; ++p)
#pragma unroll
        for (int q = 0; q < 2; ++q) {
            const index_t from = at + (p && below ? line : 0) + (q && beside ? lanes : 0);
            b.windows[p][q] = (!p || below) && (!q || beside);
            b.grad[p][q] = loom_read<io, VECTOR>((const io*)((const Lane*)grad + from));
            b.code[p][q] = ((const Codes*)code)[from];
        }
    return b;
}

// Channel e of pixel (2i + p, 2j + q): the sum over the windows whose first maximum it was, the last window first.
LOOM_INLINE real gathered(const Block& b, int p, int q, int e) {
    real sum = 0;
#pragma unroll
    for (int v = p; v >= 0; --v)
#pragma unroll
        for (int u = q; u >= 0; --u) {
            const int mine = (p + 1 - 2 * v) * 3 + q + 1 - 2 * u;  // place of the pixel in the window
            if (b.windows[v][u] && b.code[v][u].e[e] == mine) sum += loom_load(b.grad[v][u].e[e]);
        }
    return sum;
}
LOOM_INLINE void write_block(const Block& b, io* map, const Lane (&out)[2][2]) {
    Lane* to = (Lane*)map + b.first;
    loom_write<io, VECTOR>((io*)to, out[0][0]);
    if (b.columns) loom_write<io, VECTOR>((io*)(to + b.right), out[0][1]);
    if (b.rows) loom_write<io, VECTOR>((io*)(to + b.down), out[1][0]);
    if (b.rows && b.columns) loom_write<io, VECTOR>((io*)(to + b.down + b.right), out[1][1]);
}
