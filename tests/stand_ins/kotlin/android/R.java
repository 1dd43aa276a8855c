package android;

public final class R {
    public static final class id {
        public static final int input = 0x01020003;
        public static final int text1 = 0x01020014;
    }
}
