// Run a fuzz target on the files of the command line, without libFuzzer.

#include "fuzz.h"

#define MAX_SIZE (1 << 20)

int
main(int argc, char **argv)
{
    static uint8_t data[MAX_SIZE];
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL) {
            fprintf(stderr, "%s cannot be opened.\n", argv[i]);
            return 2;
        }
        size_t size = fread(data, 1, sizeof(data), file);
        fclose(file);
        // The last name printed is the one that fails.
        puts(argv[i]);
        fflush(stdout);
        // Exactly as large, so that reading behind the end is noticed.
        uint8_t *copy = malloc(size + (size == 0));
        CHECK(copy != NULL, "out of memory");
        memcpy(copy, data, size);
        LLVMFuzzerTestOneInput(copy, size);
        free(copy);
    }
    return 0;
}
