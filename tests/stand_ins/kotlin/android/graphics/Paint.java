package android.graphics;

public class Paint {
    public static final int ANTI_ALIAS_FLAG = 1;
    public static final int FILTER_BITMAP_FLAG = 2;
    public enum Style { FILL, STROKE }

    private final int flags;
    private int color = 0xff000000;
    private Style style = Style.FILL;
    private float strokeWidth;
    private float textSize = 12;

    public Paint(int flags) { this.flags = flags; }
    boolean filters() { return (flags & FILTER_BITMAP_FLAG) != 0; }
    public int getColor() { return color; }
    public void setColor(int color) { this.color = color; }
    public Style getStyle() { return style; }
    public void setStyle(Style style) { this.style = style; }
    public float getStrokeWidth() { return strokeWidth; }
    public void setStrokeWidth(float width) { strokeWidth = width; }
    public float getTextSize() { return textSize; }
    public void setTextSize(float size) { textSize = size; }
}
