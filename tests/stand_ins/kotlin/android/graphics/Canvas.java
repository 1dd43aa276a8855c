package android.graphics;

public class Canvas {
    public void drawBitmap(Bitmap bitmap, Rect source, Rect target, Paint paint) { }
}
