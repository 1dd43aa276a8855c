package android.view;

public class View {
    private int width = 1;
    private int height = 1;
    private int id = -1;

    public View(android.content.Context context) { }
    public interface OnClickListener { void onClick(View view); }
    public static class MeasureSpec {
        public static int getSize(int spec) { return spec; }
    }
    public void setOnClickListener(OnClickListener listener) { }
    public final void measure(int width, int height) { onMeasure(width, height); }
    protected void onMeasure(int width, int height) { setMeasuredDimension(width, height); }
    protected final void setMeasuredDimension(int width, int height) {
        this.width = width;
        this.height = height;
    }
    public boolean onTouchEvent(MotionEvent event) { return false; }
    public boolean performClick() { return false; }
    public void draw(android.graphics.Canvas canvas) { onDraw(canvas); }
    protected void onDraw(android.graphics.Canvas canvas) { }
    public void setId(int id) { this.id = id; }
    public int getId() { return id; }
    public void invalidate() { }
    public boolean post(Runnable action) { action.run(); return true; }
    public final int getWidth() { return width; }
    public final int getHeight() { return height; }
    public void setEnabled(boolean enabled) { }
    public boolean isEnabled() { return true; }
    public void setFitsSystemWindows(boolean fits) { }
    public boolean getFitsSystemWindows() { return true; }
}
