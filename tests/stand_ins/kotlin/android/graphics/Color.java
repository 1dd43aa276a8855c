package android.graphics;

public class Color {
    public static final int BLACK = 0xff000000;

    public static int HSVToColor(int alpha, float[] hsv) {
        return alpha << 24 | java.awt.Color.HSBtoRGB(hsv[0] / 360, hsv[1], hsv[2]) & 0xffffff;
    }
}
